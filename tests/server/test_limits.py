"""Keys, sizes, queues, origins, clients that leave and the end."""

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import httpx

    from tests.server.running import Server
else:
    httpx = pytest.importorskip("httpx")

LONG = {"prompt": "Once upon a time", "max_tokens": 370, "ignore_eos": True, "temperature": 0}


def stream(server: "Server", **more: Any) -> Any:
    body = LONG | {"stream": True} | more
    return httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=120)


def events(lines: Any) -> list[str]:
    return [line.removeprefix("data: ") for line in lines if line]


def test_key(tmp_path: Path, server: "Server") -> None:
    from tests.server.running import serving

    assert server.get("/v1/models").status_code == 200  # without one nothing is asked for
    with serving(tmp_path, "--api-key", "sésame", "--cors", "https://a.example") as guarded:
        for headers in ({}, {"Authorization": "Bearer nope"}, {"Authorization": "Basic x"}):
            for path in ("/v1/models", "/metrics", "/jobs/x", "/openapi.json", "/nope"):
                answer = guarded.get(path, headers=headers)
                assert answer.status_code == 401, path
                assert answer.json()["error"]["code"] == "invalid_api_key"
        assert guarded.post("/v1/completions", LONG).status_code == 401
        key = {"Authorization": b"Bearer " + "sésame".encode()}
        assert guarded.get("/v1/models", headers=key).status_code == 200
        assert guarded.get("/health").status_code == guarded.get("/ready").status_code == 200
        asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
        allowed = httpx.options(f"{guarded.url}/v1/completions", headers=asked)
        assert allowed.headers["access-control-allow-origin"] == "https://a.example"
        asked["Access-Control-Request-Headers"] = "authorization,content-type,x-stainless-lang"
        client = httpx.options(
            f"{guarded.url}/v1/completions", headers=asked
        )  # OpenAI's, of a page
        assert client.status_code == 200
        assert "x-stainless-lang" in client.headers["access-control-allow-headers"]
        asked["Origin"] = "https://b.example"
        refused = httpx.options(f"{guarded.url}/v1/completions", headers=asked)
        assert "access-control-allow-origin" not in refused.headers


def test_no_page_of_others_may_call_unless_asked(tmp_path: Path, server: "Server") -> None:
    """Without a key, neither by its own origin nor by a name that leads here."""
    from tests.server.running import serving

    def status(of: "Server", **headers: str) -> int:
        answer = of.post("/v1/completions", LONG | {"max_tokens": 1}, headers=headers)
        assert "access-control-allow-origin" not in answer.headers or answer.status_code == 200
        return answer.status_code

    port = server.port
    for host in ("localhost", f"localhost:{port}", f"127.0.0.1:{port}", "[::1]:80", "a.localhost"):
        assert (
            status(server, Host=host) == status(server, Host=host, Origin=f"http://{host}") == 200
        )
    for host in ("a.example", f"a.example:{port}", "localhost.a.example", "127.0.0.1.a.example"):
        assert status(server, Host=host) == 403
        assert server.get("/", headers={"Host": host}).status_code == 403
    for origin in ("https://a.example", "null", "http://localhost:1", "http://127.0.0.1"):
        assert status(server, Origin=origin) == 403
    with serving(tmp_path, "--cors", "https://a.example") as open_to_one:
        assert status(open_to_one, Origin="https://a.example") == 200
        assert status(open_to_one, Host="a.example", Origin="https://a.example") == 200
        assert status(open_to_one, Origin="https://b.example") == 403
        assert status(open_to_one, Host="b.example") == 403


@pytest.mark.parametrize("told", [True, False], ids=["length", "chunks"])
def test_body_that_is_too_large(server: "Server", told: bool) -> None:
    body = json.dumps({"prompt": "x" * (2 << 20)}).encode()
    headers = {"Content-Type": "application/json"}
    parts = (body[at : at + 65536] for at in range(0, len(body), 65536))
    url = f"{server.url}/v1/completions"
    answer = httpx.post(url, content=body if told else parts, headers=headers)
    assert answer.status_code == 413
    assert "1048576 bytes" in answer.json()["error"]["message"]
    assert server.get("/health").status_code == 200


def test_endless_body(server: "Server") -> None:
    sent = 0

    def parts() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(1 << 12):
            sent += 1 << 16
            yield bytes(1 << 16)

    with contextlib.suppress(httpx.WriteError):  # it closes without reading the rest
        answer = httpx.post(f"{server.url}/v1/completions", content=parts())
        assert answer.status_code == 413
    assert sent < 1 << 27
    assert server.get("/health").status_code == 200


def test_full_queue(slow: "Server") -> None:
    with stream(slow, n=8) as first:
        assert first.status_code == 200
        answer = slow.post("/v1/completions", LONG)
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    slow.wait_for("sequences_running", 0)
    assert slow.post("/v1/completions", LONG | {"n": 9}).status_code == 400


@pytest.mark.parametrize("streams", [True, False])
def test_vanished_client_frees_its_pages(slow: "Server", streams: bool) -> None:
    label = 'answers_total{reason="cancelled"}'
    before, made = slow.metric(label), slow.metric("generated_tokens_total")
    if streams:
        with stream(slow, n=6) as answer:
            lines = answer.iter_lines()  # which ends the request once it is dropped
            assert next(lines).startswith("data: ")
            assert slow.metric("sequences_running") == 4
            assert slow.metric("sequences_waiting") == 2
            assert slow.metric("pages_used") > 0
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{slow.url}/v1/completions", json=LONG | {"n": 6}, timeout=0.5)
    slow.wait_for(label, before + 6)
    slow.wait_for("sequences_running", 0)
    assert slow.metric("pages_used") == 0
    assert slow.metric("sequences_waiting") == 0
    assert slow.metric("generated_tokens_total") - made < 6 * 370


def test_request_that_takes_too_long(tmp_path: Path, server: "Server") -> None:
    from tests.server.running import serving

    with serving(tmp_path, "--no-kv-cache", "--timeout", "1") as hasty:
        answer = hasty.post("/v1/completions", LONG | {"n": 16})
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "timeout"
        with stream(hasty, n=16) as reply:
            *_, last = events(reply.iter_lines())
        assert json.loads(last)["error"]["code"] == "timeout"
        hasty.wait_for("sequences_running", 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_lets_streams_finish(tmp_path: Path, server: "Server", number: int) -> None:
    from tests.server.running import serving

    with serving(tmp_path, "--no-kv-cache", "--grace", "300") as stopping:
        with stream(stopping, stream_options={"include_usage": True}) as reply:
            lines = reply.iter_lines()
            next(lines)
            stopping.process.send_signal(number)
            *_, used, done = events(lines)
        assert done == "[DONE]"
        assert json.loads(used)["usage"]["completion_tokens"] == 370
        assert stopping.process.wait(timeout=60) == 0
    log = [json.loads(line) for line in stopping.log.read_text().splitlines()]
    assert {"listening", "request", "stopping", "stopped"} <= {line["event"] for line in log}
    (streamed,) = [line for line in log if line.get("path") == "/v1/completions"]
    assert (streamed["prompt_tokens"], streamed["completion_tokens"]) == (5, 370)
    assert not any("Once upon" in str(line) for line in log)


def test_stop_ends_streams_with_an_error(tmp_path: Path, server: "Server") -> None:
    from tests.server.running import serving

    with serving(tmp_path, "--no-kv-cache", "--grace", "0") as stopping:
        with stream(stopping, n=8) as reply:
            lines = reply.iter_lines()
            next(lines)
            stopping.process.send_signal(signal.SIGTERM)
            *_, last = events(lines)
        assert json.loads(last)["error"]["code"] == "stopping"
        assert stopping.process.wait(timeout=60) == 0


def test_second_control_c_ends_streams(tmp_path: Path, server: "Server") -> None:
    from tests.server.running import serving

    with serving(tmp_path, "--no-kv-cache", "--grace", "300") as stopping:
        with stream(stopping, n=32) as reply:
            lines = reply.iter_lines()
            next(lines)
            stopping.process.send_signal(signal.SIGINT)
            while '"stopping"' not in stopping.log.read_text():
                sleep(0.1)
            stopping.process.send_signal(signal.SIGINT)
            *_, last = events(lines)
        assert json.loads(last)["error"]["code"] == "stopping"
        assert stopping.process.wait(timeout=60) == 0
    assert "traceback" not in stopping.log.read_text().lower()

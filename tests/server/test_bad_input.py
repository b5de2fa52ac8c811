"""Whatever a body holds, a wrong one is a 4xx with OpenAI's error object."""

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import httpx
    import schemathesis

    from tests.server.running import Server
else:
    httpx = pytest.importorskip("httpx")
    schemathesis = pytest.importorskip("schemathesis")

from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable

JSON = {"Content-Type": "application/json"}


def refused(server: "Server", path: str, body: bytes, headers: dict[str, str] = JSON) -> Any:
    answer = httpx.post(f"{server.url}{path}", content=body, headers=headers, timeout=60)
    assert 400 <= answer.status_code < 500, answer.text
    error = answer.json()["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["type"] == "invalid_request_error"
    assert "\n" not in error["message"]
    return error


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"prompt": ' * 10_000,
        b'{"prompt": 1' + b"0" * 5000 + b"}",
        b'{"prompt": [1e999]}',
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/jobs"])
def test_body_that_is_no_object(server: "Server", path: str, body: bytes) -> None:
    refused(server, path, body)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("CompletionBody", {"prompt": ["x", *[5] * 1000]}),
        ("CompletionBody", {"prompt": [5, *["x"] * 1000]}),
        ("CompletionBody", {"prompt": [[None]] * 1000}),
        ("ChatBody", {"messages": [{}] * 1000}),
        ("ChatBody", {"messages": [{"role": "user", "content": [{}] * 1000}]}),
        ("DetokenizeBody", {"tokens": [-1] * 1000}),
    ],
)
def test_complaints_do_not_grow_with_the_body(kind: str, body: dict[str, Any]) -> None:
    """A complaint of each item would hold up all streams for seconds."""
    pydantic = pytest.importorskip("pydantic")
    from llama2gpu.server import schemas

    with pytest.raises(pydantic.ValidationError) as refusal:
        getattr(schemas, kind).model_validate(body)
    assert refusal.value.error_count() < 10


def test_body_of_another_type(server: "Server") -> None:
    body = json.dumps({"prompt": "x"}).encode()
    refused(server, "/v1/completions", body, {"Content-Type": "text/plain"})


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("prompt", "null"),
        ("prompt", "5"),
        ("prompt", "[]"),
        ("prompt", "[[]]"),
        ("prompt", "[-1]"),
        ("prompt", "[2048]"),
        ("prompt", "[1e3]"),
        ("prompt", "[true]"),
        ("prompt", "[99999999999999999999999]"),
        ("prompt", '["a", 5]'),
        ("prompt", "[[1], [2, -7]]"),
        ("prompt", json.dumps(["x"] * 1000)),
        ("temperature", "NaN"),
        ("temperature", "Infinity"),
        ("temperature", "-1"),
        ("temperature", '"1"'),
        ("temperature", "1e400"),
        ("top_p", "-0.1"),
        ("top_p", "1.1"),
        ("top_k", "-1"),
        ("top_k", "99999999999999999999"),
        ("min_p", "2"),
        ("n", "0"),
        ("n", "-1"),
        ("n", "1000000000"),
        ("n", "1.5"),
        ("n", "true"),
        ("max_tokens", "-1"),
        ("max_tokens", "1e99"),
        ("stop", "5"),
        ("stop", r'"\ud800"'),
        ("stop", json.dumps(["x"] * 100)),
        ("stop", json.dumps("x" * 10_000)),
        ("seed", "1.5"),
        ("seed", "1" + "0" * 30),
        ("presence_penalty", "3"),
        ("frequency_penalty", "-Infinity"),
        ("repetition_penalty", "0"),
        ("logit_bias", '{"x": 1}'),
        ("logit_bias", '{"-1": 1}'),
        ("logit_bias", '{"99999": 1}'),
        ("logit_bias", '{"5": NaN}'),
        ("logit_bias", '{"5": 1e9}'),
        ("logit_bias", "[]"),
        ("logprobs", "-1"),
        ("logprobs", "1000"),
        ("stream", '"yes"'),
        ("stream_options", '{"include_usage": true}'),
        ("model", "5"),
        ("model", r'"\ud800"'),
        ("best_of", "5"),
        ("suffix", '"the end"'),
    ],
)
def test_field_that_is_wrong(server: "Server", field: str, text: str) -> None:
    body = f'{{"prompt": "x", "{field}": {text}}}'
    error = refused(server, "/v1/completions", body.encode())
    assert field in error["message"] or "token" in error["message"] or error["param"] == "n"


@pytest.mark.parametrize(
    "body",
    [
        r'{"prompt": "\ud800 and \udcff"}',
        r'{"prompt": "\u0000"}',
        '{"prompt": ""}',
        '{"prompt": [1]}',
        '{"prompt": ["", "a"]}',
        '{"prompt": [[1, 5], [7]]}',
        '{"prompt": "x", "stop": ["", "y"]}',
        '{"prompt": "x", "temperature": 1e-9}',
        '{"prompt": "x", "top_p": 0}',
        '{"prompt": "x", "seed": -5}',
        '{"prompt": "x", "logit_bias": {"5": 100}}',
        '{"prompt": "x", "no_field_of_ours": {"a": [1]}, "user": "me"}',
        '{"prompt": "x", "n": null, "stream": null, "stop": null, "logit_bias": null}',
    ],
)
def test_odd_but_right(server: "Server", body: str) -> None:
    url = f"{server.url}/v1/completions"
    answer = httpx.post(url, content=body.encode(), headers=JSON, timeout=60)
    assert answer.status_code == 200, answer.text
    assert all(choice["finish_reason"] for choice in answer.json()["choices"])


def test_words(server: "Server") -> None:
    ids = server.post("/tokenize", {"prompt": "Once upon a time"}).json()
    assert ids["count"] == len(ids["tokens"]) > 1
    assert ids["max_model_len"] == 384
    text = server.post("/detokenize", {"tokens": ids["tokens"]}).json()
    assert text == {"prompt": "Once upon a time"}
    bare = server.post("/tokenize", {"prompt": "Once upon a time", "add_special_tokens": False})
    assert bare.json()["tokens"] == ids["tokens"][1:]
    assert server.post("/tokenize", {"prompt": "word " * 9000}).status_code == 400
    unknown = server.post("/detokenize", {"tokens": [1, 99999]})
    assert unknown.status_code == 400
    assert "99999" in unknown.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nope", 404), ("GET", "/v1/models/x", 404), ("DELETE", "/v1/models", 405)],
)
def test_other_routes(server: "Server", method: str, path: str, status: int) -> None:
    answer = httpx.request(method, f"{server.url}{path}")
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "invalid_request_error"


def try_all(operation: Any, mode: Any) -> list[int]:
    """The statuses of generated requests of one operation."""
    statuses: list[int] = []

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        if isinstance(case.body, dict) and isinstance(case.body.get("max_tokens"), int):
            case.body["max_tokens"] %= 64
        statuses.append(case.call(timeout=120).status_code)

    ask()
    return statuses


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_no_request_is_an_error_of_the_server(server: "Server", mode: Any) -> None:
    schema: Any = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 10
    for operation in operations:
        try:
            statuses = try_all(operation, mode)
        except Unsatisfiable:  # some have no wrong requests
            assert mode == schemathesis.GenerationMode.NEGATIVE
            assert not operation.body
        else:
            assert statuses
            assert max(statuses) < 500, operation.label

"""Connections on which nothing moves end; slow ones that move do not."""

import asyncio
import socket
from collections.abc import Iterator
from threading import Thread
from time import sleep
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="needs uvicorn")

import uvicorn

from llama2gpu.server import connection

HEAD = b"GET /%s HTTP/1.1\r\nHost: localhost\r\n"
LARGE = 32 << 20
LOOK, TIMES = 0.3, 200


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers at once, after many looks, or with more than a connection's buffers hold."""
    if scope["type"] != "http":
        return
    if scope["path"] == "/late":
        await asyncio.sleep(5 * LOOK)
    body = b"x" * (LARGE if scope["path"] == "/large" else 2)
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> "Iterator[tuple[Any, int]]":
    """A running server, which looks at its connections often, and its port."""
    monkeypatch.setattr(connection, "LOOK_SECONDS", LOOK)
    with socket.create_server(("127.0.0.1", 0)) as found:
        config = uvicorn.Config(app, http=connection.Connection, log_config=None, lifespan="off")
        server = uvicorn.Server(config)
        thread = Thread(target=server.run, args=([found],))
        thread.start()
        yield server, found.getsockname()[1]
        server.should_exit = True
        thread.join()


def call(port: int, data: bytes = b"", buffer: int | None = None) -> socket.socket:
    caller = socket.socket()
    if buffer is not None:
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    caller.settimeout(60)
    caller.connect(("127.0.0.1", port))
    caller.sendall(data)
    return caller


def rest(caller: socket.socket) -> bytes:
    """What comes until the other side has ended."""
    parts = []
    try:
        while part := caller.recv(1 << 16):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


@pytest.mark.parametrize("data", [b"", b"GET", HEAD % b"", HEAD % b"" + b"\r\n" + HEAD % b"again"])
def test_unfinished_request(served: tuple[Any, int], data: bytes) -> None:
    _, port = served
    with call(port, data) as caller:
        assert rest(caller).count(b"200 OK") == data.count(b"\r\n\r\n")


def test_reader_that_takes_nothing(served: tuple[Any, int]) -> None:
    server, port = served
    with call(port, HEAD % b"large" + b"Connection: close\r\n\r\n", buffer=4096):
        for _ in range(TIMES):
            if server.server_state.total_requests and not server.server_state.connections:
                return
            sleep(LOOK / 3)
    raise AssertionError("the connection is still held")


def test_late_answer(served: tuple[Any, int]) -> None:
    _, port = served
    with call(port, HEAD % b"late" + b"Connection: close\r\n\r\n") as caller:
        assert rest(caller).endswith(b"\r\n\r\nxx")


def test_slow_reader(served: tuple[Any, int]) -> None:
    """Its answer is whole, though most of it is taken when the request is long over."""
    _, port = served
    with call(port, HEAD % b"large" + b"Connection: close\r\n\r\n") as caller:
        taken = 0
        for _ in range(16):
            taken += len(caller.recv(1 << 20, socket.MSG_WAITALL))
            sleep(LOOK / 3)
        assert taken + len(rest(caller)) > LARGE

"""What stands before every route: the key, the size of a body, the log of requests."""

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, MutableMapping
from ipaddress import ip_address
from itertools import count
from typing import Any
from urllib.parse import urlsplit

from llama2gpu.server.errors import APIError
from llama2gpu.server.logs import log
from llama2gpu.server.metrics import Metrics
from llama2gpu.server.page import PATHS
from llama2gpu.server.settings import Settings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: What may be asked without a key: a watchman needs none, and the page asks its reader for one.
OPEN = ("/health", "/ready", *PATHS)
#: Bytes beyond the limit that are read and dropped: who is cut off while he sends hears nothing.
LISTENED = 32 << 20
#: Seconds that a client may take to send a body.
BODY_SECONDS = 30


class VanishedError(Exception):
    """The client has left before its body was whole."""


class Gate:
    """Refuses requests without the key and bodies that are too large or too slow; logs the rest.

    Where there is no key, what a browser sends for pages of others is refused, also for those that
    gave their own name this machine's address. A body is read whole before the application sees
    it. Keys are compared in constant time.
    """

    def __init__(self, app: App, settings: Settings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        self._numbers = count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI has it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, number, status = time.perf_counter(), next(self._numbers), 499

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", b"%d" % number)]
            await send(message)

        try:
            await self._admit(scope, receive, sent)
        finally:
            self.metrics.requests.labels(_route(scope), str(status)).inc()
            log(
                "request",
                id=number,
                method=scope["method"],
                path=scope["path"],
                status=status,
                seconds=round(time.perf_counter() - began, 6),
                client=(scope.get("client") or ("",))[0],
                **scope.get("state", {}).get("log", {}),
            )

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        try:
            self._check_key(scope["path"], headers)
            self._check_origin(headers)
            body = await self._body(headers, receive)
        except VanishedError:
            return
        except APIError as error:
            error.headers["Connection"] = "close"  # the rest of the body is not read
            await error.response(scope, receive, send)
            return
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return waiting.pop() if waiting else await receive()

        await self.app(scope, replay, send)

    def _check_key(self, path: str, headers: dict[bytes, bytes]) -> None:
        key = self.settings.api_key
        if key is None or path in OPEN:
            return
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        equal = hmac.compare_digest(given.strip(), key.encode())
        if scheme.lower() != b"bearer" or not equal:
            message = "no such API key: send the server's own as `Authorization: Bearer KEY`"
            raise APIError(401, message, headers={"WWW-Authenticate": "Bearer"})

    def _check_origin(self, headers: dict[bytes, bytes]) -> None:
        if self.settings.api_key is not None:
            return
        host = headers.get(b"host", b"").decode("latin-1").lower()
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        known = {text.lower() for text in self.settings.cors}
        if self.settings.local and not _is_local(host) and _names(known).isdisjoint({host}):
            message = f"this server is not {host!r}: call it localhost, or set a key"
        elif origin and origin not in known and _names({origin}) != {host}:
            message = f"pages of {origin} may not call: allow them (--cors), or set a key"
        else:
            return
        raise APIError(403, message, code="forbidden")

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self.settings.max_body + LISTENED:
            raise self._too_large()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await self._read(receive)
        except TimeoutError:
            raise APIError(408, f"the body took more than {BODY_SECONDS} seconds") from None

    async def _read(self, receive: Receive) -> bytes:
        body, size, most = bytearray(), 0, self.settings.max_body
        while True:
            message = await receive()
            if message["type"] != "http.request":
                raise VanishedError
            part = message.get("body", b"")
            size += len(part)
            if size <= most:
                body += part
            else:
                body.clear()
            if size > most and (size > most + LISTENED or not message.get("more_body", False)):
                raise self._too_large()
            if not message.get("more_body", False):
                return bytes(body)

    def _too_large(self) -> APIError:
        return APIError(413, f"the body has more than {self.settings.max_body} bytes")


def _route(scope: Scope) -> str:
    """The path as it was declared, so that no client makes up label after label."""
    return getattr(scope.get("route"), "path", "other")


def _names(origins: set[str]) -> set[str]:
    """Host and port of origins."""
    return {origin.partition("://")[2] for origin in origins}


def _is_local(host: str) -> bool:
    """Whether a Host header has a name that no stranger can own: localhost, an address, nothing."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name in ("", "localhost") or name.endswith(".localhost") or bool(ip_address(name))
    except ValueError:
        return False

"""Server-sent events: the pieces of a call as they come."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fastapi.responses import Response

from llama2gpu.server.call import Call
from llama2gpu.server.errors import APIError
from llama2gpu.server.logs import logger
from llama2gpu.server.service import vanished
from llama2gpu.server.shape import Shape, counts, usage

#: Seconds that a reader has, after a call's end, to take the rest of its events.
REST_SECONDS = 10


def event(body: object) -> bytes:
    """One event, in ASCII."""
    text = json.dumps(body, allow_nan=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()


class EventStream(Response):
    """The answer that streams a call.

    It ends with `[DONE]`, or after an event with an error object. A client that leaves ends the
    call; one that takes nothing more is cut off after the call's time.
    """

    media_type = "text/event-stream"

    def __init__(self, call: Call, shape: Shape, n: int, *, with_usage: bool, limit: float) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.call, self.shape, self.n = call, shape, n
        self.with_usage, self.limit = with_usage, limit

    async def __call__(
        self,
        scope: Any,
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        """Writes events until the call or the client ends."""
        writer = asyncio.ensure_future(self._write(send))
        watcher = asyncio.ensure_future(vanished(receive))
        try:
            limit = self.limit + REST_SECONDS
            tasks = (writer, watcher)
            await asyncio.wait(tasks, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if writer.done():
                writer.result()
        finally:
            scope.setdefault("state", {})["log"] = counts(self.call, self.n)
            self.call.close()
            writer.cancel()
            watcher.cancel()

    async def _write(self, send: Callable[[Any], Awaitable[None]]) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        async for data in self._events():
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self) -> AsyncIterator[bytes]:
        try:
            for choice in self.shape.opening():
                yield self._chunk([choice])
            async for index, piece in self.call.pieces():
                if piece.text or piece.tokens or piece.reason is not None:
                    yield self._chunk([self.shape.choice(index, piece)])
        except APIError as error:
            yield event(error.body)
            return
        except Exception:
            logger.exception("stream failed")
            yield event(APIError(500, "an error of the server: its log says more").body)
            return
        if self.with_usage:
            yield self._chunk([], usage=usage(self.call, self.n))
        yield b"data: [DONE]\n\n"

    def _chunk(self, choices: list[dict[str, Any]], **more: object) -> bytes:
        if self.with_usage:
            more = {"usage": None} | more
        return event(self.shape.envelope(choices, chunk=True) | more)

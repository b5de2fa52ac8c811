"""A connection that nothing moves on any more, and on which no answer is awaited, is ended."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

#: Seconds between two looks at a connection.
LOOK_SECONDS = 15


class Connection(H11Protocol):
    """HTTP/1.1 by h11, which bounds the size of a request's head.

    Where no request is under way, uvicorn waits for ever: for a head, once its first byte is here
    or before the first one at all, and for a reader to take the rest of an answer. Such a
    connection holds a file descriptor, of which a process has few; here it is ended if two looks
    find it the same.
    """

    _look: asyncio.TimerHandle | None = None
    _before: tuple[object, int] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to look."""
        super().connection_made(transport)
        self._look_again()

    def connection_lost(self, exc: Exception | None) -> None:
        """Looks no more."""
        if self._look is not None:
            self._look.cancel()
        super().connection_lost(exc)

    def _look_again(self) -> None:
        over = self.cycle is None or self.cycle.response_complete or self.transport.is_closing()
        found = (self.cycle, self.transport.get_write_buffer_size()) if over else None
        if found is not None and found == self._before:
            self.transport.abort()
            return
        self._before = found
        self._look = self.loop.call_later(LOOK_SECONDS, self._look_again)

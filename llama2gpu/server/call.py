"""Answers on their way from the engine's thread to a task of the event loop.

What a reader has not taken yet is joined into one piece, so a slow one gets longer pieces and
holds nobody up. A stream whose reader is BACKLOG tokens behind is ended and frees its pages.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llama2gpu.request import Request, StopReason, Token
from llama2gpu.server.errors import APIError

if TYPE_CHECKING:
    from llama2gpu.server.worker import Worker

#: Tokens that a reader of a stream may be behind.
BACKLOG = 1024


@dataclass
class Piece:
    """New text of an answer, the tokens that made it, and why the answer ended, if it did.

    count: tokens that the answer has so far, those of no text included.
    """

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    count: int = 0
    reason: StopReason | None = None

    def join(self, other: "Piece") -> None:
        """Takes the piece that follows this one."""
        self.text += other.text
        self.tokens += other.tokens
        self.count, self.reason = other.count, other.reason


class Answer:
    """One sequence as the event loop sees it."""

    def __init__(self, call: "Call", index: int, request: Request) -> None:
        self.call, self.index, self.request = call, index, request
        self.begun = self.over = False
        self.count = 0
        self._piece: Piece | None = None
        self._taken = 0

    def receive(self, piece: Piece) -> None:
        """Takes what the engine's thread has made."""
        self.begun, self.count = True, piece.count
        self.over = self.over or piece.reason is not None
        if self._piece is None:
            self._piece = piece
        else:
            self._piece.join(piece)
        if self.call.streams and piece.count - self._taken > BACKLOG and not self.over:
            self.call.fail(APIError(400, "the reader of this stream is too slow", code="slow"))

    def take(self) -> Piece | None:
        """What has come since the last time."""
        piece, self._piece = self._piece, None
        if piece is not None:
            self._taken = piece.count
        return piece


class Call:
    """The answers to one HTTP request.

    streams: whether a reader takes pieces as they come, and may be too slow for them.
    """

    def __init__(self, worker: "Worker", requests: list[Request], *, streams: bool = False) -> None:
        self.worker, self.streams = worker, streams
        self.answers = [Answer(self, index, request) for index, request in enumerate(requests)]
        self.timer: asyncio.TimerHandle | None = None
        self._error: Exception | None = None
        self._news = asyncio.Event()

    @property
    def over(self) -> bool:
        """Whether no more will come."""
        return self._error is not None or all(answer.over for answer in self.answers)

    async def begin(self) -> None:
        """Hands the requests to the engine and waits until it took them all.

        Raises `APIError` where the queue is full, `RequestError` for what can't be served.
        """
        self.worker.submit(self)
        while self._error is None and not all(answer.begun for answer in self.answers):
            self._news.clear()
            await self._news.wait()
        if self._error is not None:
            raise self._error
        self._news.set()  # some may have come already

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Pieces of all answers as they come, each with its answer's number.

        Raises what the call failed with, once all that came before is told.
        """
        while True:
            await self._news.wait()
            self._news.clear()
            over = self.over
            for answer in self.answers:
                if (piece := answer.take()) is not None:
                    yield answer.index, piece
            if self._error is not None:
                raise self._error
            if over:
                return

    async def whole(self) -> list[Piece]:
        """The answers from end to end, in the order of their requests."""
        wholes = [Piece() for _ in self.answers]
        async for index, piece in self.pieces():
            wholes[index].join(piece)
        return wholes

    def notify(self) -> None:
        """Wakes who waits for pieces."""
        self._news.set()

    def fail(self, error: Exception) -> None:
        """Ends what still runs; the reader gets the error. What has ended stays as it is."""
        if not self.over:
            self._error = error
            self.close()

    def close(self) -> None:
        """Ends what still runs, as nobody reads it, and frees its pages."""
        if self.timer is not None:
            self.timer.cancel()
        self.worker.cancel(self)
        self._news.set()

"""Pieces on their way to readers, without a server."""

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

pytest.importorskip("fastapi", reason="needs fastapi")

from llama2gpu.request import Request, StopReason, Token
from llama2gpu.sampling import SamplingParams
from llama2gpu.server.call import BACKLOG, Call, Piece
from llama2gpu.server.errors import APIError
from llama2gpu.server.metrics import Metrics
from llama2gpu.server.service import Service
from llama2gpu.server.settings import Settings
from llama2gpu.server.shape import CompletionShape
from llama2gpu.server.stream import EventStream
from llama2gpu.server.worker import Worker as EngineWorker

if TYPE_CHECKING:
    from llama2gpu.api import Llama


class Worker:
    """Takes every call and remembers whom it was told to cancel."""

    def __init__(self) -> None:
        self.cancelled: list[Call] = []

    def submit(self, call: Call) -> None:
        for answer in call.answers:
            answer.receive(Piece())
        call.notify()

    def cancel(self, call: Call) -> None:
        self.cancelled.append(call)


def begun(count: int = 1, *, streams: bool = True) -> tuple[Call, Worker]:
    worker = Worker()
    call = Call(cast(Any, worker), [Request([1])] * count, streams=streams)
    asyncio.run(call.begin())
    return call, worker


def send(call: Call, index: int, text: str, count: int, reason: StopReason | None = None) -> None:
    call.answers[index].receive(Piece(text, [Token(5, -1.0)], count, reason))
    call.notify()


def read(call: Call) -> list[tuple[int, str, int]]:
    async def all_of_it() -> list[tuple[int, str, int]]:
        return [(index, piece.text, len(piece.tokens)) async for index, piece in call.pieces()]

    return asyncio.run(all_of_it())


def test_what_is_not_read_yet_becomes_one_piece() -> None:
    call, _ = begun(2)
    for count, text in enumerate("abc", 1):
        send(call, 0, text, count)
    send(call, 1, "x", 1, "eos")
    send(call, 0, "d", 4, "length")
    assert read(call) == [(0, "abcd", 4), (1, "x", 1)]


def test_whole_answers() -> None:
    call, _ = begun(2, streams=False)
    for index in (1, 0):
        send(call, index, "a", 1)
        send(call, index, str(index), 2, "stop")
    wholes = asyncio.run(call.whole())
    assert [(piece.text, piece.count, piece.reason) for piece in wholes] == [
        ("a0", 2, "stop"),
        ("a1", 2, "stop"),
    ]


def test_reader_that_is_too_slow_is_cut_off() -> None:
    call, worker = begun()
    for count in range(1, BACKLOG + 1):
        send(call, 0, "x", count)
    assert not call.over
    send(call, 0, "x", BACKLOG + 1)
    assert call.over
    assert worker.cancelled == [call]
    with pytest.raises(APIError, match="too slow"):
        read(call)


def test_whole_answer_has_no_slow_reader() -> None:
    call, worker = begun(streams=False)
    for count in range(1, BACKLOG + 2):
        send(call, 0, "x", count)
    assert not call.over
    assert not worker.cancelled


def test_failure_comes_after_what_was_made() -> None:
    call, worker = begun()
    send(call, 0, "made", 1)
    call.fail(APIError(503, "no more"))
    assert worker.cancelled == [call]
    seen = []

    async def take() -> None:
        async for _, piece in call.pieces():
            seen.append(piece.text)

    with pytest.raises(APIError, match="no more"):
        asyncio.run(take())
    assert seen == ["made"]


def test_what_has_ended_does_not_fail() -> None:
    call, worker = begun()
    send(call, 0, "all", 1, "eos")
    call.fail(APIError(503, "no more"))
    assert read(call) == [(0, "all", 1)]
    assert not worker.cancelled


def test_thread_ends_also_behind_its_event_loop(alone: "Llama") -> None:
    worker = EngineWorker(alone, Metrics(alone.engine), 1)

    async def begin() -> None:
        worker.start()

    asyncio.run(begin())
    worker._tell(lambda: None)  # the loop is closed
    assert worker.alive
    for _ in range(2):
        worker.end()
        assert not worker.alive


def test_reader_that_takes_nothing_holds_up_nobody(alone: "Llama") -> None:
    service = Service(alone, Settings("stories"))
    prompt = alone.tokenizer.encode("Once upon a time")
    params = SamplingParams(max_tokens=60, temperature=0.0)

    async def never(message: object = None) -> None:
        await asyncio.Event().wait()

    async def both() -> str:
        service.worker.start()
        call = await service.begin(service.requests(prompt, params, 4), streams=True)
        shape = CompletionShape("stories", alone.tokenizer, False, {})
        stream = EventStream(call, shape, 4, with_usage=False, limit=600)
        stuck = asyncio.create_task(stream({}, cast(Any, never), never))
        async with asyncio.timeout(300):
            other = await service.begin(service.requests(prompt, params, 1), streams=False)
            wholes = await service.collect(other, never)
            while not call.over:
                await asyncio.sleep(0.01)
        assert not stuck.done()
        stuck.cancel()
        await service.worker.stop()
        assert wholes is not None
        return wholes[0].text

    assert asyncio.run(both()) == alone.generate(prompt, max_tokens=60, temperature=0.0).text
    assert alone.engine.cache.free_pages == alone.engine.cache.pages

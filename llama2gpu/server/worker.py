"""The one thread that steps the engine.

The event loop hands it calls and cancellations; it hands back pieces of text after each step and
never waits for a reader.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from llama2gpu.api import Generation, Llama
from llama2gpu.errors import Llama2GPUError, RequestError
from llama2gpu.request import Token
from llama2gpu.server.call import Answer, Call, Piece
from llama2gpu.server.errors import APIError, too_busy
from llama2gpu.server.logs import logger
from llama2gpu.server.metrics import Metrics

Command = Callable[[], None]


class Running:
    """One sequence as the engine's thread sees it."""

    def __init__(self, answer: Answer, generation: Generation, arrived: float) -> None:
        self.answer, self.generation = answer, generation
        self.seen = 0
        self.last = arrived
        self.held: list[Token] = []

    def piece(self) -> Piece | None:
        """What has come since the last time; tokens wait for the text that they are part of."""
        sequence = self.generation.sequence
        reason, output = sequence.reason, sequence.output
        text = self.generation.released()
        self.held += output[self.seen :]
        self.seen = len(output)
        if not text and reason is None:
            return None
        # a stop string's own tokens have no text and are not shown
        tokens = self.held if text or reason != "stop" else []
        self.held = []
        return Piece(text, tokens, self.seen, reason)


class Worker:
    """Steps the engine for all calls; all methods but `run` and `end` belong to the event loop.

    capacity: sequences that run or wait at most. healthy: whether the last step went well.
    """

    def __init__(self, llama: Llama, metrics: Metrics, capacity: int) -> None:
        self.llama, self.metrics, self.capacity = llama, metrics, capacity
        self.healthy = True
        self.calls: set[Call] = set()
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._running: dict[Answer, Running] = {}
        self._thread = threading.Thread(target=self.run, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = False
        metrics.waiting.set_function(lambda: max(self.load - len(llama.engine.running), 0))

    @property
    def load(self) -> int:
        """Sequences that run or wait."""
        return sum(not answer.over for call in list(self.calls) for answer in call.answers)

    @property
    def alive(self) -> bool:
        """Whether the thread runs and its last step went well."""
        return self._thread.is_alive() and self.healthy

    def start(self) -> None:
        """Begins to serve the event loop that this is called in."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """Ends the thread; what runs is dropped."""
        await asyncio.to_thread(self.end)

    def end(self) -> None:
        """The same from any thread, for good: Python must not end while the thread computes."""
        self._commands.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, call: Call) -> None:
        """Takes a call. Raises `APIError` where there is no room for it."""
        count = len(call.answers)
        if count > self.capacity:
            message = f"{count} answers are asked for, and the server takes {self.capacity} at once"
            raise APIError(400, message, param="n")
        if self.load + count > self.capacity:
            raise too_busy()
        self.calls.add(call)
        now = time.perf_counter()
        for answer in call.answers:
            self._commands.put(partial(self._begin, answer, now))

    def cancel(self, call: Call) -> None:
        """Ends what of a call still runs; its pages are free before the next step."""
        self.calls.discard(call)
        for answer in call.answers:
            if not answer.over:
                self._commands.put(partial(self._drop, answer))
                answer.over = True

    def run(self) -> None:
        """The thread: commands, a step, its news; without work it waits for a command."""
        while not self._ended:
            try:
                command = self._commands.get(block=not self._running)
                if command is None:
                    self._ended = True
                else:
                    command()
                continue
            except queue.Empty:
                pass
            self._step()

    def _step(self) -> None:
        try:
            self.llama.step()
            self.healthy = True
            self.metrics.count_step()
        except Exception as error:
            logger.exception("step failed")
            self.healthy = False
            failure = _failure()
            out_of_memory = isinstance(error, MemoryError) or "out of memory" in str(error)
            if isinstance(error, Llama2GPUError) or out_of_memory:
                failure = APIError(503, f"the engine failed: {error}")
            for answer in list(self._running):
                self._drop(answer)
                self._tell(partial(answer.call.fail, failure))
            return
        self._publish(list(self._running.values()))

    def _begin(self, answer: Answer, arrived: float) -> None:
        if answer.over:
            return
        try:
            generation = Generation(self.llama, answer.request)
        except RequestError as error:
            self._tell(partial(answer.call.fail, error))
            return
        except Exception:
            logger.exception("request failed")
            self._tell(partial(answer.call.fail, _failure()))
            return
        self.metrics.prompt_tokens.inc(len(answer.request.prompt))
        self._running[answer] = Running(answer, generation, arrived)
        self._tell(partial(_receive, [(answer, Piece())]))
        if generation.sequence.reason is not None:
            self._publish([self._running[answer]])

    def _drop(self, answer: Answer) -> None:
        if (running := self._running.pop(answer, None)) is not None:
            running.generation.cancel()
            self.metrics.answers.labels("cancelled").inc()

    def _publish(self, running: list[Running]) -> None:
        news, now = [], time.perf_counter()
        for one in running:
            self._measure(one, now)
            piece = one.piece()
            if piece is None:
                continue
            if piece.reason is not None:
                del self._running[one.answer]
                self.metrics.answers.labels(piece.reason).inc()
            if (error := one.generation.sequence.error) is not None:
                failure = APIError(503, str(error))
                self._tell(partial(one.answer.call.fail, failure))
            else:
                news.append((one.answer, piece))
        if news:
            self._tell(partial(_receive, news, self._settle))

    def _measure(self, one: Running, now: float) -> None:
        count = len(one.generation.sequence.output) - one.seen
        if not count:
            return
        self.metrics.tokens.inc(count)
        first = one.seen == 0
        if first:
            self.metrics.first_token.observe(now - one.last)
        for _ in range(count - first):
            self.metrics.next_token.observe((now - one.last) / (count - first))
        one.last = now

    def _settle(self, call: Call) -> None:
        if call.over:
            self.calls.discard(call)

    def _tell(self, what: Command) -> None:
        assert self._loop is not None
        with suppress(RuntimeError):  # it is closed: nobody reads any more
            self._loop.call_soon_threadsafe(what)


def _failure() -> APIError:
    return APIError(500, "the engine failed: the server's log says more")


def _receive(
    news: list[tuple[Answer, Piece]], settle: Callable[[Call], None] = lambda call: None
) -> None:
    """In the event loop: pieces to their answers, then a word to their readers."""
    for answer, piece in news:
        if not answer.over:
            answer.receive(piece)
    for call in {answer.call for answer, _ in news}:
        settle(call)
        call.notify()

"""What the routes share: the model, its words, the worker and how a call becomes an answer."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from typing import Any

from llama2gpu.api import Llama
from llama2gpu.errors import ContextError
from llama2gpu.request import Request, check_ids
from llama2gpu.sampling import SamplingParams
from llama2gpu.server.call import Call, Piece
from llama2gpu.server.errors import APIError, stopping
from llama2gpu.server.metrics import Metrics
from llama2gpu.server.settings import Settings
from llama2gpu.server.worker import Worker
from llama2gpu.tokenizer import well_formed

#: Texts of more characters, or ids, are encoded or decoded beside the event loop.
_SHORT = 2000


class Service:
    """One model that is served. draining: whether new work is refused, as the server stops."""

    def __init__(self, llama: Llama, settings: Settings) -> None:
        self.llama, self.settings = llama, settings
        self.metrics = Metrics(llama.engine)
        self.worker = Worker(llama, self.metrics, settings.capacity)
        self.created = int(time.time())
        self.draining = False
        words = llama.tokenizer
        self._longest = max((len(words.token(id).text) for id in range(words.vocab)), default=1)

    @property
    def context(self) -> int:
        """Positions of a sequence."""
        return self.llama.engine.model.context

    @property
    def ready(self) -> bool:
        """Whether a request would be taken now."""
        return self.worker.alive and not self.draining

    def check_model(self, name: str | None) -> None:
        """Raises `APIError` where another model is asked for."""
        if name is not None and name != self.settings.name:
            message = f"no model {name!r} is served here: ask for {self.settings.name!r}"
            raise APIError(404, message, param="model", code="model_not_found")

    async def encode(self, text: str, bos: bool = True) -> list[int]:
        """Ids of a text. Raises `ContextError` at once for one that can't fit the context."""
        text = well_formed(text)
        self._check_length(len(text.encode()))
        if len(text) <= _SHORT:
            return self.llama.tokenizer.encode(text, bos=bos)
        return await asyncio.to_thread(self.llama.tokenizer.encode, text, bos=bos)

    async def talk(self, messages: list[dict[str, str]]) -> list[int]:
        """Ids of a conversation. Raises `RequestError` for what the chat template refuses."""
        self._check_length(sum(len(message["content"].encode()) for message in messages))
        return await asyncio.to_thread(self.llama.chat.prompt, messages)

    def _check_length(self, size: int) -> None:
        if size > self._longest * (self.context + 1):
            raise ContextError(
                f"the prompt is longer than any of {self.context} tokens, which the context holds"
            )

    async def decode(self, ids: list[int]) -> str:
        """Text of ids. Raises `RequestError` for one that no token has."""
        check_ids(ids, self.llama.engine.model.config.vocab)
        if len(ids) <= _SHORT:
            return self.llama.tokenizer.decode(ids)
        return await asyncio.to_thread(self.llama.tokenizer.decode, ids)

    def requests(
        self,
        ids: list[int],
        params: SamplingParams,
        n: int,
        stop_ids: Collection[int] | None = None,
    ) -> list[Request]:
        """A prompt as n requests, whose seeds follow one another where one is given.

        stop_ids: those of the checkpoint if None.
        """
        seeds = [None if params.seed is None else (params.seed + i) % (1 << 63) for i in range(n)]
        return [self.llama.request(ids, replace(params, seed=seed), stop_ids) for seed in seeds]

    async def begin(self, requests: list[Request], *, streams: bool) -> Call:
        """A call that the engine has taken. Raises `APIError` or `RequestError`."""
        if self.draining:
            raise stopping()
        call = Call(self.worker, requests, streams=streams)
        loop = asyncio.get_running_loop()
        call.timer = loop.call_later(self.settings.timeout, call.fail, self._late())
        try:
            await call.begin()
        except BaseException:
            call.close()
            raise
        return call

    async def collect(
        self, call: Call, receive: Callable[[], Awaitable[Any]]
    ) -> list[Piece] | None:
        """All answers of a call; None where the client has left meanwhile."""
        reader = asyncio.ensure_future(call.whole())
        watcher = asyncio.ensure_future(vanished(receive))
        try:
            await asyncio.wait((reader, watcher), return_when=asyncio.FIRST_COMPLETED)
            return reader.result() if reader.done() else None
        finally:
            call.close()
            reader.cancel()
            watcher.cancel()

    def drain(self, loop: asyncio.AbstractEventLoop) -> None:
        """Refuses new work; what runs gets the time of grace, and then an error."""
        if not self.draining:
            self.draining = True
            loop.call_later(self.settings.grace, self.abort)

    def abort(self) -> None:
        """Ends all that runs with an error."""
        for call in list(self.worker.calls):
            call.fail(stopping())

    def _late(self) -> APIError:
        message = f"the answer took more than {self.settings.timeout:g} seconds"
        return APIError(504, message, code="timeout", headers={"x-should-retry": "false"})


async def vanished(receive: Callable[[], Awaitable[Any]]) -> None:
    """Returns once the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def new_id(kind: str) -> str:
    """A name for an answer."""
    return f"{kind}-{uuid.uuid4().hex}"

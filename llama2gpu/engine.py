"""The engine: requests in, tokens out, one step for all of them at a time.

A step takes the new tokens of every running sequence, a chunk of its prompt or the last token
drawn, through the model in one flat batch, and draws the next token of each that is ready.
"""

import contextlib
import math
import time
from collections import deque
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch

from llama2gpu.backends.base import Batch
from llama2gpu.backends.loop import DecodeLoop, ReadBack
from llama2gpu.batch import Span, build_batch
from llama2gpu.cache import PAGE, KVCache
from llama2gpu.decoding import Decoding, most_asked, tokens_of
from llama2gpu.errors import RequestError
from llama2gpu.model import Model
from llama2gpu.ops.sample import Drawn, SampleParams, log_probability
from llama2gpu.request import Request, Sequence, StopReason, Token
from llama2gpu.sampling import stack

#: Prompt tokens of a step at most, where nothing else is asked for.
CHUNK = 512
#: Pages are reserved for so many tokens at a time where a request sets no bound.
RESERVE = 1024


@dataclass
class Stats:
    """Tokens and seconds of the steps so far: those with a prompt in them, and pure decoding."""

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0
    decode_steps: int = 0


class Engine:
    """Runs sequences on a model.

    chunk: prompt tokens of a step at most, over all sequences.
    recompute: reuse nothing that is cached; each step takes every sequence from its first token.
    max_sequences: how many run at once; the rest wait in order.
    kv_dtype: of the cache; int8 is quantized, None the activations' type.
    """

    def __init__(
        self,
        model: Model,
        *,
        chunk: int = CHUNK,
        recompute: bool = False,
        max_sequences: int = 256,
        page: int = PAGE,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        self.model, self.chunk, self.recompute = model, chunk, recompute
        self.max_sequences = max_sequences
        self.device = model.backend.device
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self.stats = Stats()
        self.cache = KVCache(model.config, 0, kv_dtype or model.activations, self.device, page)
        # not methods: a loop that held its engine would keep the weights until a collection
        step, held = partial(_next, model, self.cache), partial(_held, model, self.cache)
        loop = DecodeLoop(model.backend, step, held, model.context, page)
        self._decoding = Decoding(loop, page)

    @property
    def busy(self) -> bool:
        """Whether any sequence is running or waiting."""
        return bool(self.running or self.waiting)

    def add(self, request: Request) -> Sequence:
        """Takes a request. Raises `RequestError` where it can never be served."""
        sequence = Sequence(request, self.model.config.vocab, self.model.context, self.device)
        if sequence.reason is None:
            self.waiting.append(sequence)
        return sequence

    def cancel(self, sequence: Sequence, reason: StopReason = "cancelled") -> None:
        """Ends a sequence now and frees its pages; one that has ended stays as it is."""
        if sequence.reason is None:
            sequence.reason = reason
            self._sweep()

    @torch.inference_mode()
    def step(self) -> list[tuple[Sequence, Token]]:
        """One pass for all running sequences; returns the tokens that it drew.

        One that is interrupted is done again, from what each sequence has accepted.
        """
        try:
            with self.model.backend.current():
                return self._step()
        except BaseException:
            self._decoding.drop()
            raise

    def _step(self) -> list[tuple[Sequence, Token]]:
        self._admit()
        began = time.perf_counter()
        under_way = self._decoding.under_way(self.running)
        spans = {} if under_way else self._spans()
        decoding = under_way or all(s.decoding for s in spans)
        if under_way or (not self.recompute and self._decoding.takes(spans)):
            drawn = self._loop(spans)
        elif spans:
            drawn = self._pass(spans)
        else:
            return []
        taken = sum(span.count for span in spans.values())
        self._count(taken, len(drawn), decoding, time.perf_counter() - began)
        accepted = [(s, t) for s, t in drawn if self._finite(s, t) and s.accept(t)]
        self._sweep()
        return accepted

    def _pass(self, spans: dict[Sequence, Span]) -> list[tuple[Sequence, Token]]:
        """What is drawn once each sequence has taken what it adds."""
        self._decoding.drop()  # whoever goes on beside it, goes on from here
        ready = [s for s, span in spans.items() if span.start + span.count == len(s.tokens)]
        drawn = self._draw(ready, *self._inputs(spans, ready))
        for s, span in spans.items():  # not before: an interrupted step is done again
            s.cached = span.start + span.count
        return drawn

    def _loop(self, spans: dict[Sequence, Span]) -> list[tuple[Sequence, Token]]:
        """What the device's own loop drew; it begins anew where there are spans."""
        if spans:
            tokens, batch, _ = self._inputs(spans, list(spans), spare=True)
            self._decoding.begin(list(spans), tokens, batch, self._params(list(spans)))
        self._decoding.launch(self.running)
        return self._decoding.read()

    def _admit(self) -> None:
        """Moves who waits to who runs, with the pages that each may need; the cache grows once."""
        count = min(len(self.waiting), self.max_sequences - len(self.running))
        joining = [s for s in islice(self.waiting, count) if s not in self.running]
        self.running += joining
        for _ in range(count):
            self.waiting.popleft()
        wanted = [self._reserve(s) for s in joining]
        missing = sum(map(self.cache.pages_for, wanted)) - self.cache.free_pages
        if missing > 0:
            with contextlib.suppress(RequestError):  # then some may have their pages yet
                self.cache.grow(missing)
        for s, tokens in zip(joining, wanted, strict=True):
            self._hold(s, tokens)
        self._sweep()

    def _reserve(self, sequence: Sequence) -> int:
        """Tokens that a sequence is given pages for when it starts."""
        bound = sequence.request.params.max_tokens
        return len(sequence.tokens) + min(RESERVE if bound is None else bound, sequence.room) - 1

    def _hold(self, sequence: Sequence, tokens: int) -> None:
        """Gives a sequence the pages for so many tokens, or ends it where there is no memory."""
        missing = self.cache.pages_for(tokens) - len(sequence.pages)
        try:
            if missing > self.cache.free_pages:
                self.cache.grow(missing - self.cache.free_pages)
            sequence.pages += self.cache.take(max(missing, 0))
        except RequestError as error:
            sequence.fail(error)

    def _spans(self) -> dict[Sequence, Span]:
        """What each sequence adds in this step, in running order."""
        spans, left = {}, self.chunk
        for s in self.running:
            s.settle()
            start, count = s.cached, len(s.tokens) - s.cached
            if self.recompute:
                start, count = 0, len(s.tokens)
            elif not s.decoding:
                count = min(count, left)
                left -= count
            if count:
                if start + count > len(s.pages) * self.cache.page:
                    self._hold(s, min(start + count + RESERVE, self.model.context))
                if s.reason is None:
                    spans[s] = Span(s.pages, start, count)
        self._sweep()
        return spans

    def _inputs(
        self, spans: dict[Sequence, Span], ready: Seq[Sequence], spare: bool = False
    ) -> tuple[torch.Tensor, Batch, torch.Tensor]:
        tokens = [t for s, span in spans.items() for t in s.tokens[span.start :][: span.count]]
        rows, end, chosen = [], 0, set(ready)
        for s, span in spans.items():
            end += span.count
            if s in chosen:
                rows.append(end - 1)
        found = list(spans.values())
        batch = build_batch(found, self.cache.page, self.device, spare=spare)
        return self._tensor(tokens), batch, self._tensor(rows)

    def _params(self, sequences: Seq[Sequence]) -> SampleParams:
        return stack([s.state for s in sequences], self.model.config.vocab, self.device)

    def _draw(
        self, ready: Seq[Sequence], tokens: torch.Tensor, batch: Batch, rows: torch.Tensor
    ) -> list[tuple[Sequence, Token]]:
        x = self.model.forward(tokens, batch, self.cache.layers)
        if not ready:
            return []
        drawn = self.model.draw(x[rows], self._params(ready))
        c_samplers = [s.state.c_sampler for s in ready]
        if any(c_samplers):
            for i, sampler in enumerate(c_samplers):
                if sampler is not None:
                    drawn.tokens[i] = sampler.draw(drawn.logits[i])
            logprobs = log_probability(drawn.logits, drawn.tokens)
            drawn = drawn._replace(logprobs=logprobs)
        return tokens_of(ready, ReadBack(drawn, len(ready), most_asked(ready)).results())

    def _finite(self, sequence: Sequence, token: Token) -> bool:
        """Whether the model gave a number; a sequence for which it did not has failed."""
        if not math.isfinite(token.logprob):
            message = "the model gave logits that are no numbers: its weights are damaged, "
            sequence.fail(RequestError(message + "or too large for --dtype fp16: try fp32 or bf16"))
            self.cache.wipe(sequence.pages)
        return sequence.reason is None

    def _count(self, taken: int, drawn: int, decoding: bool, seconds: float) -> None:
        stats = self.stats
        if decoding:
            stats.decode_tokens += drawn
            stats.decode_seconds += seconds
            stats.decode_steps += 1
        else:
            stats.prefill_tokens += taken
            stats.prefill_seconds += seconds

    def _sweep(self) -> None:
        """Frees the pages of sequences that have ended."""
        for s in self.running:
            if s.reason is not None:
                self.cache.give_back(s.pages)
                s.pages = []
        self.running = [s for s in self.running if s.reason is None]
        self.waiting = deque(s for s in self.waiting if s.reason is None)

    def _tensor(self, values: Seq[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)


def _next(
    model: Model, cache: KVCache, tokens: torch.Tensor, batch: Batch, params: SampleParams
) -> Drawn:
    """A token of each sequence through the model, and the next ones drawn."""
    return model.draw(model.forward(tokens, batch, cache.layers), params)


def _held(model: Model, cache: KVCache) -> tuple[torch.Tensor, ...]:
    """What `_next` reads and may be replaced: a cache grows, and so does the RoPE table."""
    return (*cache.parts, *model.rope)

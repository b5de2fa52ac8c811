"""The engine: requests in, tokens out, one step for all of them at a time.

A step takes the new tokens of every running sequence, a chunk of its prompt or the last token
drawn, through the model in one flat batch, and draws the next token of each that is ready.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from llama2gpu.backends.base import Batch
from llama2gpu.backends.loop import DecodeLoop, ReadBack
from llama2gpu.batch import Span, build_batch
from llama2gpu.cache import PAGE, KVCache
from llama2gpu.decoding import Decoding, most_asked, tokens_of
from llama2gpu.errors import RequestError
from llama2gpu.model import Model
from llama2gpu.ops.sample import Drawn, SampleParams, log_probability
from llama2gpu.pace import Pace
from llama2gpu.request import Request, Sequence, StopReason, Token
from llama2gpu.sampling import stack
from llama2gpu.scheduler import Scheduler

#: Prompt tokens of a step at most, where nothing else is asked for.
CHUNK = 512


@dataclass
class Stats:
    """Tokens and seconds of the steps so far: those with a prompt in them, and pure decoding.

    prefill_tokens: of prompts, as far as they were computed. reused_tokens: the others, which were
    in the cache from earlier ones that began alike.
    """

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0
    decode_steps: int = 0
    reused_tokens: int = 0


class Engine:
    """Runs sequences on a model.

    chunk: prompt tokens of a step at most, over all sequences; beside sequences that decode they
    are so few that these go on at half their speed or more.
    recompute: reuse nothing that is cached; each step takes every sequence from its first token.
    max_sequences: how many run at once; the rest wait in order.
    max_pages: pages of the cache, which are taken from memory at once: who finds too few of them
    free waits, in order. None: it grows as far as it must.
    share: prompts that begin alike are computed once, as long as their pages aren't needed.
    kv_dtype: of the cache; int8 is quantized, None the activations' type.
    clock: seconds, to tell what steps take.
    """

    def __init__(
        self,
        model: Model,
        *,
        chunk: int = CHUNK,
        recompute: bool = False,
        max_sequences: int = 256,
        max_pages: int | None = None,
        share: bool = True,
        page: int = PAGE,
        kv_dtype: torch.dtype | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if max_pages is not None and max_pages < 1:
            raise RequestError(f"max_pages is {max_pages}: give 1 or more, or None for no bound")
        self.model, self.chunk, self.recompute = model, chunk, recompute
        self.device, self.clock = model.backend.device, clock
        self.stats = Stats()
        kind = kv_dtype or model.activations
        self.cache = KVCache(model.config, max_pages or 0, kind, self.device, page)
        # not methods: a loop that held its engine would keep the weights until a collection
        step, held = partial(_next, model, self.cache), partial(_held, model, self.cache)
        loop = DecodeLoop(model.backend, step, held, model.context, page)
        self.scheduler = Scheduler(
            self.cache,
            Pace(chunk),
            model.context,
            max_sequences=max_sequences,
            bounded=max_pages is not None,
            share=share,
            recompute=recompute,
            ahead=loop.lag,
        )
        self._decoding = Decoding(loop, page)

    @property
    def running(self) -> list[Sequence]:
        """Who has pages, in the order of arrival."""
        return self.scheduler.running

    @property
    def waiting(self) -> deque[Sequence]:
        """Who comes next."""
        return self.scheduler.waiting

    @property
    def busy(self) -> bool:
        """Whether any sequence is running or waiting."""
        return bool(self.running or self.waiting)

    def check(self, request: Request) -> None:
        """Raises `RequestError` for what `add` refuses."""
        request.check(self.model.config.vocab, self.model.context)
        self.scheduler.room(request)

    def add(self, request: Request) -> Sequence:
        """Takes a request. Raises `RequestError` where it can never be served."""
        sequence = Sequence(request, self.model.config.vocab, self.model.context, self.device)
        self.scheduler.add(sequence)
        return sequence

    @torch.inference_mode()
    def cancel(self, sequence: Sequence, reason: StopReason = "cancelled") -> None:
        """Ends a sequence now and frees its pages; one that has ended stays as it is."""
        if sequence.reason is None:
            sequence.reason = reason
            with self._whole():
                self.scheduler.sweep()

    @torch.inference_mode()
    def step(self) -> list[tuple[Sequence, Token]]:
        """One pass for all running sequences; returns the tokens that it drew.

        One that is interrupted is done again, from what each sequence has accepted.
        """
        with self._whole():
            return self._step()

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Leaves all as it was last known where what is done is interrupted."""
        try:
            with self.model.backend.current():
                yield
        except BaseException:
            self._decoding.drop()
            self.scheduler.restore()
            raise

    def _step(self) -> list[tuple[Sequence, Token]]:
        self.scheduler.admit()
        began, looping, ahead = self.clock(), self.scheduler.looping(), self._decoding.ahead
        under_way = self._decoding.under_way(looping)
        spans = {} if under_way else self.scheduler.plan()
        prompt = sum(span.count for s, span in spans.items() if not s.decoding)
        decoding = len(self._decoding.group) if under_way else sum(s.decoding for s in spans)
        takes = self._decoding.takes(spans) and list(spans) == looping and not self.recompute
        looped = under_way or takes
        if looped:
            drawn = self._loop(spans, looping)
        elif spans:
            drawn = self._pass(spans)
        else:
            self._decoding.drop()  # who made room comes back with other pages
            return []
        seconds = self.clock() - began
        self._count(prompt, len(drawn), seconds)
        replayed = looped and self._decoding.loop.buckets
        whole = ahead == self._decoding.ahead
        self.scheduler.pace.note(prompt, decoding, seconds, replayed, whole)
        accepted = [(s, t) for s, t in drawn if self._finite(s, t) and s.accept(t)]
        for s, _ in accepted:
            if len(s.output) == 1:
                self.scheduler.publish(s)
        self.scheduler.sweep()
        return accepted

    def _pass(self, spans: dict[Sequence, Span]) -> list[tuple[Sequence, Token]]:
        """What is drawn once each sequence has taken what it adds."""
        self._decoding.drop()  # whoever goes on beside it, goes on from here
        ready = [s for s, span in spans.items() if span.start + span.count == len(s.tokens)]
        drawn = self._draw(ready, *self._inputs(spans, ready))
        for s, span in spans.items():  # not before: an interrupted step is done again
            s.cached = span.start + span.count
        return drawn

    def _loop(
        self, spans: dict[Sequence, Span], looping: Seq[Sequence]
    ) -> list[tuple[Sequence, Token]]:
        """What the device's own loop drew; it begins anew where there are spans."""
        if spans:
            tokens, batch, _ = self._inputs(spans, list(spans), spare=True)
            self._decoding.begin(list(spans), tokens, batch, self._params(list(spans)))
        self._decoding.launch(looping)
        return self._decoding.read()

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
        return sequence.reason is None

    def _count(self, prompt: int, drawn: int, seconds: float) -> None:
        stats = self.stats
        stats.reused_tokens = self.scheduler.reused
        if prompt:
            stats.prefill_tokens += prompt
            stats.prefill_seconds += seconds
        else:
            stats.decode_tokens += drawn
            stats.decode_seconds += seconds
            stats.decode_steps += 1

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

"""Decoding without the host: steps one after another on the device, read back when they are done.

A step draws the next token of each sequence and readies its own inputs for the step behind it, so
that this one can be launched before anybody has seen the token.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llama2gpu.backends.base import Backend, Batch
from llama2gpu.backends.graphs import Held, Replays
from llama2gpu.ops.sample import Drawn, SampleParams

#: A token of each sequence through the model, and the next ones drawn.
Step = Callable[[Tensor, Batch, SampleParams], Drawn]

#: Cached tokens of the smallest bucket; each is twice the one before.
SHORTEST = 512


class Results(NamedTuple):
    """What one step drew: of each sequence a token, its log-probability, and the likeliest."""

    tokens: list[int]
    logprobs: list[float]
    likeliest: list[tuple[tuple[int, float], ...]]


class DecodeLoop:
    """Launches decode steps of a number of sequences; their results come in order.

    step: runs on the backend. held: gives the tensors that it reads besides its arguments, which
    may be replaced between steps. context: tokens that a sequence may have at most. page: tokens of
    a page of the cache.
    """

    def __init__(self, backend: Backend, step: Step, held: Held, context: int, page: int) -> None:
        self.lag, self.buckets, capture = backend.looping()
        self.run = Replays(held, capture)
        self.backend, self.step, self.context, self.page = backend, step, context, page
        self.flying: deque[ReadBack] = deque()
        self._kept: dict[tuple[object, ...], _State] = {}
        self._now: _State | None = None
        self._counts: tuple[int, ...] = ()
        self._likeliest = 0

    def start(self, tokens: Tensor, batch: Batch, params: SampleParams, likeliest: int = 0) -> None:
        """Takes sequences with their last tokens int64 [S], to begin with; nothing is launched.

        likeliest: how many tokens to report beside each that is drawn.
        """
        self._counts, self._likeliest = batch.cached_counts, likeliest
        if not self.buckets:
            self._now = _State((), tokens, batch, params)
            return
        flags = (x is not None if isinstance(x, Tensor | None) else x for x in _values(params))
        key = (bucket_of(len(tokens)), *flags)
        if key not in self._kept:
            pages = -(-self.context // self.page)
            self._kept[key] = _room_for(key, tokens, batch, params, pages)
        self._now = self._kept[key]
        self._now.fill(tokens, batch, params)

    def launch(self) -> None:
        """Launches the next step of all sequences."""
        now, counts = self._now, self._counts
        assert now is not None
        if self.buckets:
            counts = (self._reach(max(counts)),) * len(now.tokens)
        batch = replace(now.batch, cached_counts=counts)
        if not self.buckets:  # backends keep what they make of the same positions
            batch = replace(batch, positions=now.batch.positions.clone())

        def work() -> Drawn:
            drawn = self.step(now.tokens, batch, now.params)
            self.backend.advance(drawn.tokens, now.tokens, now.batch, now.params, self.page)
            return drawn

        drawn = self.run((*now.key, *counts[:1]), work)
        self.flying.append(ReadBack(drawn, len(self._counts), self._likeliest))
        self._counts = tuple(count + 1 for count in self._counts)

    def read(self) -> Results:
        """What the oldest step that was launched drew; waits for it."""
        return self.flying.popleft().results()

    def forget(self) -> None:
        """Drops what was launched."""
        self.flying.clear()

    def _reach(self, length: int) -> int:
        """Cached tokens that a step with such a longest sequence is captured for."""
        size = SHORTEST
        while size < length:
            size *= 2
        return min(size, self.context)


def bucket_of(count: int) -> int:
    """Sequences that a step is captured for: 2ⁿ or 3 · 2ⁿ, so that at most a third is in vain."""
    size = 1 << max(count - 1, 0).bit_length()
    return size // 4 * 3 if size >= 4 and count <= size // 4 * 3 else size


@dataclass(frozen=True)
class _State:
    """What a step reads and advances."""

    key: tuple[object, ...]
    tokens: Tensor
    batch: Batch
    params: SampleParams

    def fill(self, tokens: Tensor, batch: Batch, params: SampleParams) -> None:
        """Copies the sequences, and the last one again where fewer are there than room.

        A copy does what its original does, to the same places, and nobody reads what it drew.
        """
        now = self.batch
        table = now.block_table[:, : batch.block_table.shape[1]]
        _copy(self.tokens, tokens)
        _copy(table, batch.block_table)
        for name in ("positions", "slots", "lengths"):
            _copy(getattr(now, name), getattr(batch, name))
        for to, value in zip(_values(self.params), _values(params), strict=True):
            if isinstance(to, Tensor) and isinstance(value, Tensor):
                _copy(to, value)


def _room_for(
    key: tuple[object, ...], tokens: Tensor, batch: Batch, params: SampleParams, pages: int
) -> _State:
    """Tensors of such kinds for as many sequences as the bucket has, each with so many pages."""
    size = bucket_of(len(tokens))

    def like(x: Tensor) -> Tensor:
        return x.new_zeros((size, *x.shape[1:]))

    static = Batch(
        positions=like(batch.positions),
        slots=like(batch.slots),
        starts=torch.arange(size + 1, dtype=batch.starts.dtype, device=tokens.device),
        lengths=like(batch.lengths),
        block_table=batch.block_table.new_zeros(size, pages),
        new_counts=(1,) * size,
        cached_counts=(),
    )
    tables: dict[str, Any] = {
        field.name: like(value)
        for field, value in zip(fields(params), _values(params), strict=True)
        if isinstance(value, Tensor)
    }
    return _State(key, like(tokens), static, replace(params, **tables))


class ReadBack:
    """A step's results on their way to the host; of `count` sequences, `likeliest` tokens each."""

    def __init__(self, drawn: Drawn, count: int, likeliest: int) -> None:
        parts = [drawn.tokens[:count], drawn.logprobs[:count]]
        if likeliest:
            most = min(likeliest, drawn.logits.shape[1])
            top = drawn.logits[:count].log_softmax(dim=1).topk(most, dim=1)
            parts += [top.indices, top.values]
        self.event = None
        if drawn.tokens.is_cuda:
            self.parts = [part.to("cpu", non_blocking=True) for part in parts]
            self.event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.event.record(torch.cuda.current_stream(drawn.tokens.device))
        else:
            self.parts = [part.clone() for part in parts]

    def results(self) -> Results:
        """Waits for them."""
        if self.event is not None:
            self.event.synchronize()
        tokens, logprobs, *tops = (part.tolist() for part in self.parts)
        if not tops:
            return Results(tokens, logprobs, [()] * len(tokens))
        pairs = [tuple(zip(*row, strict=True)) for row in zip(*tops, strict=True)]
        return Results(tokens, logprobs, pairs)


def _copy(to: Tensor, rows: Tensor) -> None:
    to[: len(rows)].copy_(rows)
    to[len(rows) :] = rows[-1]


def _values(params: SampleParams) -> list[Tensor | bool | None]:
    return [getattr(params, field.name) for field in fields(params)]

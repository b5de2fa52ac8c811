"""A decode step as one CUDA graph, captured once for each bucket of batch and context.

A replay does no work on the host but to copy the step's few numbers into the buffers that the graph
reads. Prefill, and whatever a bucket sees for the first time, runs as it is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from llama2gpu.backends.base import Batch

#: A step: tokens int64 [T], where they belong, and the rows whose logits are wanted.
Step = Callable[[Tensor, Batch, Tensor], Tensor]
#: The tensors that a step reads besides its arguments; a graph is good while they stay the same.
Held = Callable[[], tuple[Tensor, ...]]

#: Tokens of the smallest bucket; each is twice the one before.
SHORTEST = 512


class Graph(Protocol):
    """What was captured."""

    def replay(self) -> None:
        """Runs it again on its buffers."""


class Capture(Protocol):
    """Captures what a function launches, without running it; gives the graph and the result."""

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Graph, Tensor]:
        """See the class."""


@dataclass
class _Bucket:
    """The buffers of one bucket, and what was captured on them."""

    tokens: Tensor
    batch: Batch
    rows: Tensor
    graph: Graph | None = None
    logits: Tensor | None = None

    def fill(self, tokens: Tensor, batch: Batch, rows: Tensor) -> None:
        self.tokens.copy_(tokens)
        self.rows.copy_(rows)
        for name in ("positions", "slots", "starts", "lengths"):
            getattr(self.batch, name).copy_(getattr(batch, name))
        self.batch.block_table[:, : batch.block_table.shape[1]].copy_(batch.block_table)


class GraphedStep:
    """A step that replays what it can; called like the step.

    reach: tokens that a sequence may have at most. page: tokens of a page of the cache.
    """

    def __init__(
        self, step: Step, held: Held, reach: int, page: int, capture: Capture | None = None
    ) -> None:
        self.step, self.held, self.reach, self.page = step, held, reach, page
        self.capture = capture or CudaCapture()
        self.buckets: dict[tuple[int, int], _Bucket] = {}
        self._last: tuple[Tensor, ...] = ()

    def __call__(self, tokens: Tensor, batch: Batch, rows: Tensor) -> Tensor:
        """The logits; those of a replay are overwritten by the next one."""
        single = all(new == 1 for new in batch.new_counts)
        if not single or len(rows) != len(tokens) or not len(tokens):
            return self.step(tokens, batch, rows)
        held = self.held()
        if len(held) != len(self._last) or any(
            a is not b for a, b in zip(held, self._last, strict=True)
        ):
            self.buckets.clear()  # what they were captured on is gone
            self._last = held
        key = (len(tokens), self._bucket(max(batch.cached_counts)))
        bucket = self.buckets.get(key)
        first = bucket is None
        if bucket is None:
            bucket = self.buckets[key] = self._buffers(key, tokens, batch, rows)
        bucket.fill(tokens, batch, rows)
        if first:  # runs, so that every kernel is compiled before it is captured
            return self.step(bucket.tokens, bucket.batch, bucket.rows)
        if bucket.graph is None or bucket.logits is None:
            work = (bucket.tokens, bucket.batch, bucket.rows)
            bucket.graph, bucket.logits = self.capture(lambda: self.step(*work))
        bucket.graph.replay()
        return bucket.logits

    def _bucket(self, length: int) -> int:
        size = SHORTEST
        while size < length:
            size *= 2
        return min(size, self.reach)

    def _buffers(self, key: tuple[int, int], tokens: Tensor, batch: Batch, rows: Tensor) -> _Bucket:
        count, reach = key
        pages = -(-reach // self.page)
        static = Batch(
            positions=torch.empty_like(batch.positions),
            slots=torch.empty_like(batch.slots),
            starts=torch.empty_like(batch.starts),
            lengths=torch.empty_like(batch.lengths),
            block_table=batch.block_table.new_zeros(count, pages),
            new_counts=(1,) * count,
            cached_counts=(reach,) * count,
        )
        return _Bucket(torch.empty_like(tokens), static, torch.empty_like(rows))


class CudaCapture:
    """Captures with PyTorch's CUDA graphs, all in one pool of memory."""

    def __init__(self) -> None:
        self.pool: Any = None

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Graph, Tensor]:
        """See `Capture`."""
        graph = torch.cuda.CUDAGraph()
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle()
        with torch.cuda.graph(graph, pool=self.pool):
            logits = work()
        return graph, logits

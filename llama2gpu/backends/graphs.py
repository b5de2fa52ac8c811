"""Work that is captured as a CUDA graph once it has been seen, and replayed from then on."""

from collections.abc import Callable, Hashable
from typing import Any, Protocol

import torch
from torch import Tensor

from llama2gpu.backends.base import Drawn

#: The tensors that work reads besides its own; a graph is good while they stay the same.
Held = Callable[[], tuple[Tensor, ...]]
Work = Callable[[], Drawn]


class Graph(Protocol):
    """What was captured."""

    def replay(self) -> None:
        """Runs it again on the tensors that it was captured on."""


class Capture(Protocol):
    """Captures what a function launches, without running it; gives the graph and the result."""

    def __call__(self, work: Work) -> tuple[Graph, Drawn]:
        """See the class."""


class Replays:
    """Work by key: the first time it runs, so that all is compiled; then its graph is replayed.

    capture: None never captures.
    """

    def __init__(self, held: Held, capture: Capture | None) -> None:
        self.held, self.capture = held, capture
        self.graphs: dict[Hashable, tuple[Graph, Drawn] | None] = {}
        self._last: tuple[Tensor, ...] = ()

    def __call__(self, key: Hashable, work: Work) -> Drawn:
        """The work's result; that of a replay lies where the next one writes its own."""
        if self.capture is None:
            return work()
        held = self.held()
        if len(held) != len(self._last) or any(
            a is not b for a, b in zip(held, self._last, strict=True)
        ):
            self.graphs.clear()  # what they were captured on is gone
            self._last = held
        if key not in self.graphs:
            drawn = work()
            self.graphs[key] = None
            return drawn
        found = self.graphs[key]
        if found is None:
            found = self.graphs[key] = self.capture(work)
        graph, drawn = found
        graph.replay()
        return drawn


class CudaCapture:
    """Captures with PyTorch's CUDA graphs, all in one pool of memory."""

    def __init__(self) -> None:
        self.pool: Any = None

    def __call__(self, work: Work) -> tuple[Graph, Drawn]:
        """See `Capture`."""
        graph = torch.cuda.CUDAGraph()
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle()
        with torch.cuda.graph(graph, pool=self.pool):
            drawn = work()
        return graph, drawn

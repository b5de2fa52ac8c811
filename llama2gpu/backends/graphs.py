"""Work that is captured as a CUDA graph once it has been seen, and replayed from then on."""

import logging
from collections.abc import Callable, Hashable
from typing import Protocol
from weakref import ref

import torch
from torch import Tensor

from llama2gpu.ops.sample import Drawn

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

    make: makes what captures; None never captures. Where capturing fails, the work runs as it is.
    """

    def __init__(self, held: Held, make: Callable[[], Capture] | None) -> None:
        self.held, self.make = held, make
        self.graphs: dict[Hashable, tuple[Graph, Drawn] | None] = {}
        self._capture: Capture | None = None
        self._last: list[ref[Tensor]] = []

    def __call__(self, key: Hashable, work: Work) -> Drawn:
        """The work's result; that of a replay lies where the next one writes its own."""
        if self.make is None:
            return work()
        held, last = self.held(), [x() for x in self._last]
        if len(held) != len(last) or any(a is not b for a, b in zip(held, last, strict=True)):
            self.graphs.clear()  # what they were captured on is gone, and so is their memory
            self._capture, self._last = self.make(), [ref(x) for x in held]
        if key not in self.graphs:
            drawn = work()
            self.graphs[key] = None
            return drawn
        found = self.graphs[key] or self._captured(key, work)
        if found is None:
            return work()
        graph, drawn = found
        graph.replay()
        return drawn

    def _captured(self, key: Hashable, work: Work) -> tuple[Graph, Drawn] | None:
        assert self._capture is not None
        try:
            found = self.graphs[key] = self._capture(work)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            logging.getLogger(__name__).warning(
                "llama2gpu: a decode step can't be made a CUDA graph (%s): it runs without, "
                "which is slower", reason,
            )  # fmt: skip
            self.make = None
            return None
        return found


class CudaCapture:
    """Captures with PyTorch's CUDA graphs, all in one pool of memory."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Work) -> tuple[Graph, Drawn]:
        """See `Capture`."""
        graph = torch.cuda.CUDAGraph()
        # other threads may go on with what is theirs
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            drawn = work()
        return graph, drawn

"""Running and timing launches on the GPU at hand."""

import math
import statistics
from collections.abc import Callable, Sequence

import torch

from llama2gpu.kernels.launch import Launch
from llama2gpu.kernels.warm import warm

#: Sets of weights: as many as together have three times the L2 cache, at least and at most.
FEWEST, MOST = 2, 32
#: Launches of one graph, at least, and how often it is replayed while it is timed.
LAUNCHES, REPLAYS = 24, 21
#: Milliseconds of replays before that, in which the clocks rise.
WARMUP = 20.0


class CudaBench:
    """The `Bench` of a GPU: what is timed is one CUDA graph, whose launches read other weights."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cache = int(torch.cuda.get_device_properties(device).L2_cache_size)
        torch.cuda.set_device(device)  # Triton compiles for and launches on the current one

    def sets(self, nbytes: int) -> int:
        """See `Bench.sets`."""
        return count_sets(nbytes, self.cache)

    def compile(self, launches: Sequence[Launch]) -> None:
        """See `Bench.compile`."""
        warm(launches)

    def run(self, launches: Sequence[Launch]) -> None:
        """See `Bench.run`."""
        for launch in launches:
            launch.run()
        torch.cuda.synchronize(self.device)

    def microseconds(self, rounds: Sequence[Sequence[Launch]]) -> float:
        """See `Bench.microseconds`."""
        calls = [launch.run for launches in rounds for launch in launches]
        times = graph_times(self.device, calls, math.ceil(LAUNCHES / len(rounds)))
        return statistics.median(times) * len(calls) / len(rounds)


def graph_times(
    device: torch.device, calls: Sequence[Callable[[], object]], repeats: int
) -> list[float]:
    """Microseconds of a call, for each replay of one graph of all calls, so often in a row.

    The calls have run before, so that all is compiled. Raises `RuntimeError` where one can't be
    captured.
    """
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize(device)
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            for call in calls:
                call()
    warmed = 0.0
    while warmed < WARMUP:
        warmed += milliseconds(graph.replay)
    count = repeats * len(calls)
    return [1000 * milliseconds(graph.replay) / count for _ in range(REPLAYS)]


def milliseconds(work: Callable[[], object]) -> float:
    """Time that the GPU takes for what a call gives it."""
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    began.record()
    work()
    ended.record()
    ended.synchronize()
    return float(began.elapsed_time(ended))


def count_sets(nbytes: int, cache: int) -> int:
    """Sets of weights of so many bytes that a cache of so many bytes can't hold."""
    return max(FEWEST, min(math.ceil(3 * cache / max(nbytes, 1)), MOST))

"""How long a call takes on a device, whose cache the calls of a round sweep."""

import statistics
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from llama2gpu.measure.limits import synchronize

#: Bytes of a cache that the system does not tell.
UNKNOWN_CACHE = 64 << 20
#: A round's sets have so many times the bytes of the cache, but are no more than `MOST`.
SWEEP, FEWEST, MOST = 3, 2, 512
#: Calls that are timed: at least and at most so many, and between them for so many seconds.
LEAST_CALLS, MOST_CALLS, SECONDS = 7, 5000, 0.25

Call = Callable[[], object]


class Times(NamedTuple):
    """Microseconds of a call: the median, and the quartiles around it; graph: as part of one."""

    median: float
    low: float
    high: float
    graph: bool = False


class Timer(Protocol):
    """What tells time; cache: bytes of the device's largest."""

    cache: int

    def microseconds(self, calls: Sequence[Call]) -> Times:
        """Of one of the calls, which take turns; each runs once before, as some pack or compile."""


def sets_of(nbytes: int, cache: int) -> int:
    """How many sets of so many bytes to go through, so that the cache can't hold them."""
    return max(FEWEST, min(-(-SWEEP * cache // max(nbytes, 1)), MOST))


def is_cold(nbytes: int, cache: int) -> bool:
    """Whether sets of so many bytes together sweep the cache."""
    return nbytes >= SWEEP * cache


def timer_for(device: torch.device) -> Timer:
    """The timer of a kind of device."""
    return GraphTimer(device) if device.type == "cuda" else CallTimer(device)


class CallTimer:
    """Times each call by itself, to its end."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.cache = device, cpu_cache()

    def microseconds(self, calls: Sequence[Call]) -> Times:
        """See `Timer.microseconds`."""
        for call in calls:
            call()
        samples: list[float] = []
        for call in islice(cycle(calls), MOST_CALLS):
            if len(samples) >= LEAST_CALLS and sum(samples) > 1e6 * SECONDS:
                break
            samples.append(self._once(call))
        return quartiles(samples)

    def _once(self, call: Call) -> float:
        synchronize(self.device)
        began = time.perf_counter()
        call()
        synchronize(self.device)
        return 1e6 * (time.perf_counter() - began)


class GraphTimer:
    """Times replays of one CUDA graph of all calls; call by call where they can't be captured."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cache = int(torch.cuda.get_device_properties(device).L2_cache_size)
        torch.cuda.set_device(device)

    def microseconds(self, calls: Sequence[Call]) -> Times:
        """See `Timer.microseconds`."""
        from llama2gpu.measure.cuda_bench import LAUNCHES, REPLAYS, graph_times, milliseconds

        for call in calls:
            call()
        try:
            times = graph_times(self.device, calls, -(-LAUNCHES // len(calls)))
            return quartiles(times)._replace(graph=True)
        except RuntimeError:  # it reads back from the device, or allocates
            torch.cuda.synchronize(self.device)
        return quartiles([1000 * milliseconds(call) for _ in range(REPLAYS) for call in calls])


def quartiles(samples: Sequence[float]) -> Times:
    """Of at least two samples."""
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Times(middle, low, high)


def cpu_cache(cpus: Path = Path("/sys/devices/system/cpu")) -> int:
    """Bytes of the largest caches of all processors together, as Linux tells them.

    Groups of cores may each have one, and each thread finds its part of a matrix in its own again.
    """
    sizes: dict[tuple[str, str], int] = {}
    try:
        for path in cpus.glob("cpu[0-9]*/cache/index*/size"):
            level, sharing = (path.with_name(n).read_text() for n in ("level", "shared_cpu_list"))
            sizes[level.strip(), sharing] = read_size(path.read_text())
    except OSError:
        return UNKNOWN_CACHE
    last = max((level for level, _ in sizes), key=int, default="")
    return sum(size for (level, _), size in sizes.items() if level == last) or UNKNOWN_CACHE


def read_size(text: str) -> int:
    """Bytes of "32768K" or "32M"."""
    text = text.strip()
    factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
    return int(text.rstrip("KMG")) * factor

"""What the device at hand can do at best, measured: reading memory, and multiplying matrices."""

import time
from collections.abc import Callable, Sequence

import torch


def read_bandwidth(blocks: Sequence[torch.Tensor], repeats: int = 5) -> float:
    """Bytes a second of the fastest of several sums over all blocks, in turn.

    Blocks should be far larger than any cache together, and what is compared should read the same
    ones: pages of one machine can differ twofold (other NUMA nodes, other tenants).
    """
    words = [block.flatten().view(torch.int64) for block in blocks if block.nbytes % 8 == 0]
    nbytes = sum(block.nbytes for block in words)
    seconds = fastest(lambda: [block.sum() for block in words], words[0].device, repeats)
    return nbytes / seconds


def matmul_peak(
    device: torch.device, dtype: torch.dtype, size: int | None = None, repeats: int = 5
) -> float:
    """Floating-point operations a second of the fastest of several size³ products.

    size: one that hides the launch where None.
    """
    size = size or (8192 if device.type == "cuda" else 2048)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / fastest(lambda: torch.mm(a, b.T), device, repeats)


def fastest(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Seconds of the fastest of `repeats` calls, after one that warms up."""
    work()
    times = []
    for _ in range(repeats):
        synchronize(device)
        began = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - began)
    return min(times)


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()

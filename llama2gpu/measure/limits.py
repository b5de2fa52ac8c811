"""What the device at hand can do at best, measured: reading memory, and multiplying matrices."""

import time
from collections.abc import Callable

import torch


def read_bandwidth(device: torch.device, nbytes: int = 1 << 30, repeats: int = 5) -> float:
    """Bytes a second of the fastest of several sums over `nbytes` (far more than any cache)."""
    data = torch.ones(nbytes // 4, dtype=torch.float32, device=device)
    return nbytes / fastest(lambda: data.sum(), device, repeats)


def matmul_peak(
    device: torch.device, dtype: torch.dtype, size: int = 2048, repeats: int = 5
) -> float:
    """Floating-point operations a second of the fastest of several size³ products."""
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

"""Running CUDA C launches on a GPU: CuPy compiles them by NVRTC, and keeps what it compiled."""

from functools import cache
from typing import Any

import cupy
import numpy as np
import torch

from llama2gpu.kernels.cuda import Argument, CudaLaunch, source

#: Shared memory of a block that a kernel has without asking for more.
PLAIN_SHARED = 48 << 10


class CupyRunner:
    """Launches on PyTorch's current stream of one device, over PyTorch's memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.index = device.index or 0

    def __call__(self, launch: CudaLaunch) -> None:
        """See `kernels.cuda.Runner`."""
        if launch.empty:
            return
        arguments = tuple(map(_argument, launch.arguments))
        stream = _stream(torch.cuda.current_stream(self.device).cuda_stream, self.index)
        with cupy.cuda.Device(self.index), stream:
            kernel = _kernel(launch.file, launch.options, launch.kernel, self.index)
            if launch.shared > PLAIN_SHARED:
                kernel.max_dynamic_shared_size_bytes = launch.shared
            threads = (launch.threads, 1, 1)
            kernel(launch.grid, threads, arguments, shared_mem=launch.shared)


@cache
def _kernel(file: str, options: tuple[str, ...], name: str, device: int) -> Any:
    # never --use_fast_math: it makes packed weights, which are denormal numbers, zero
    module = cupy.RawModule(code=source(file), options=("--std=c++17", *options))
    return module.get_function(name)


class _Handle:
    """A stream of PyTorch's in CUDA's protocol."""

    def __init__(self, pointer: int) -> None:
        self.pointer = pointer

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.pointer


@cache
def _stream(pointer: int, device: int) -> Any:
    if hasattr(cupy.cuda.Stream, "from_external"):
        return cupy.cuda.Stream.from_external(_Handle(pointer))
    return cupy.cuda.ExternalStream(pointer, device)


def _argument(value: Argument) -> Any:
    if isinstance(value, torch.Tensor):
        return np.uint64(value.data_ptr())
    if value is None:
        return np.uint64(0)
    return np.float32(value) if isinstance(value, float) else np.int32(value)

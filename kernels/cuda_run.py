"""Running CUDA C launches on a GPU through CuPy."""

from functools import cache
from typing import Any

import cupy
import numpy as np
import torch
from cupy.cuda.function import Module

from llama2gpu.kernels.cuda import Argument, CudaLaunch
from llama2gpu.kernels.cuda_compile import cached_binary


class CupyRunner:
    """Launches on PyTorch's current stream of one device, over PyTorch's memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.index = device.index or 0
        self.arch = int(cupy.cuda.Device(self.index).compute_capability)

    def __call__(self, launch: CudaLaunch) -> None:
        """See `kernels.cuda.Runner`."""
        if launch.empty:
            return
        with cupy.cuda.Device(self.index):
            kernel = _kernel(launch.file, launch.options, launch.kernel, self.arch, self.index)
            stream = _stream(torch.cuda.current_stream(self.device).cuda_stream, self.index)
            arguments = tuple(map(_argument, launch.arguments))
            threads = (launch.threads, 1, 1)
            kernel(launch.grid, threads, arguments, launch.shared, stream)


@cache
def _module(file: str, macros: tuple[str, ...], arch: int, device: int) -> Any:
    module = Module()
    module.load(cached_binary(file, macros, arch))
    return module


@cache
def _kernel(file: str, macros: tuple[str, ...], name: str, arch: int, device: int) -> Any:
    return _module(file, macros, arch, device).get_function(name)


class _Handle:
    """A stream of PyTorch's in CUDA's protocol."""

    def __init__(self, pointer: int) -> None:
        self.pointer = pointer

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.pointer


@cache
def _stream(pointer: int, device: int) -> Any:
    return cupy.cuda.Stream.from_external(_Handle(pointer))


def _argument(value: Argument) -> Any:
    if isinstance(value, torch.Tensor):
        return np.uint64(value.data_ptr())
    if value is None:
        return np.uint64(0)
    return np.float32(value) if isinstance(value, float) else np.int32(value)

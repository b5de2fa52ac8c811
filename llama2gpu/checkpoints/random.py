"""A checkpoint of random weights, for tests and measurements without a file."""

import math
import zlib
from collections.abc import Iterator
from mmap import mmap
from pathlib import Path

import torch

from llama2gpu.checkpoints.base import Checkpoint, TensorInfo, tensor_shapes
from llama2gpu.config import Config
from llama2gpu.errors import CheckpointError


class RandomCheckpoint(Checkpoint):
    """Random weights of a configuration, made as they are read.

    Matrices are normal with standard deviation 0.02, norms 1 with deviation 0.02. A tensor depends
    on `seed`, `dtype` and its name alone, so equal arguments give equal weights in any order.
    """

    format = "random"
    path = Path("random")
    bos_id = 1

    def __init__(self, config: Config, dtype: torch.dtype, seed: int = 0) -> None:
        self.config = config
        self.dtype = dtype
        self.seed = seed
        self._shapes = dict(tensor_shapes(config))

    def tensors(self) -> Iterator[TensorInfo]:
        """All tensors, by canonical name, with the bytes that each would take on disk."""
        dtype = str(self.dtype).removeprefix("torch.")
        for name, shape in self._shapes.items():
            yield TensorInfo(name, shape, dtype, math.prod(shape) * self.dtype.itemsize)

    def read(self, name: str) -> torch.Tensor:
        """One tensor, made anew."""
        if name not in self._shapes:
            raise CheckpointError(f"{self.path} holds no tensor {name!r}")
        shape = self._shapes[name]
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {name}".encode()))
        mean = 1.0 if len(shape) == 1 else 0.0
        # a map of its own, like a file's: short-lived tensors on the heap would leave holes there
        space = mmap(-1, math.prod(shape) * self.dtype.itemsize)
        tensor = torch.frombuffer(space, dtype=self.dtype).view(shape)
        return tensor.normal_(mean, 0.02, generator=generator)

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
from llama2gpu.quant import Int4, Int8, QuantSpec, Weight

#: Values that are drawn; a longer tensor repeats them. A prime, so that no two rows are alike.
DRAWN = 4_194_301


class RandomCheckpoint(Checkpoint):
    """Random weights of a configuration, made as they are read, about as fast as from a file.

    Matrices are normal with standard deviation 0.02, norms 1 with deviation 0.02. A tensor depends
    on `seed`, `dtype` and its name alone, so equal arguments give equal weights in any order.
    """

    format = "random"
    path = Path("random")
    bos_id = 1

    def __init__(
        self, config: Config, dtype: torch.dtype, seed: int = 0, quant: QuantSpec | None = None
    ) -> None:
        self.config, self.dtype, self.seed, self.quant = config, dtype, seed, quant
        self.quantization = None if quant is None else quant.kind
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
        generator = self._generator(name)
        mean = 1.0 if len(shape) == 1 else 0.0
        # a map of its own, like a file's: short-lived tensors on the heap would leave holes there
        space = mmap(-1, math.prod(shape) * self.dtype.itemsize)
        values = torch.frombuffer(space, dtype=self.dtype)
        values[:DRAWN].normal_(mean, 0.02, generator=generator)
        return _repeat(values).view(shape)

    def kind(self, name: str) -> str:
        """What was asked for."""
        return "dense" if self.quant is None else self.quant.kind

    def weight(self, name: str) -> Weight:
        """One matrix, quantized where that was asked for."""
        rows, columns = self._shapes.get(name, (0, 0))
        headed = self.quant is not None and self.quant.head
        if self.quant is None or name == "embed" or (name == "output" and not headed):
            return super().weight(name)
        group = self.quant.group_of([rows], columns)
        if group is None:
            return super().weight(name)
        generator, width = self._generator(name), columns * self.quant.bits // 8
        space = mmap(-1, rows * width)
        values = torch.frombuffer(space, dtype=torch.int8)
        values[:DRAWN].random_(-128, 128, generator=generator)
        values = _repeat(values).view(rows, width)
        spread = 0.02 / (2**self.quant.bits / math.sqrt(12))  # of evenly spread values
        scales = torch.full((rows, columns // group), spread, dtype=torch.float16)
        if self.quant.kind == "int8":
            return Int8(values, scales)
        zeros = torch.full(scales.shape, 8, dtype=torch.uint8) if self.quant.zero_points else None
        return Int4(values.view(torch.int32), scales, zeros)

    def _generator(self, name: str) -> torch.Generator:
        return torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {name}".encode()))


def _repeat(values: torch.Tensor) -> torch.Tensor:
    """A flat tensor whose first `DRAWN` values are drawn, with the others made of them."""
    for start in range(DRAWN, len(values), DRAWN):
        part = values[start : start + DRAWN]
        part.copy_(values[: len(part)])
    return values

"""Tensors as files hold them, and a checkpoint made of them."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from llama2gpu.checkpoints.base import Checkpoint, TensorInfo, tensor_shapes
from llama2gpu.checkpoints.files import blamed_on
from llama2gpu.config import Config
from llama2gpu.errors import CheckpointError, UnsupportedModelError
from llama2gpu.quant import Dense, Weight

FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_READ = {**FLOATS, "int32": torch.int32}

Loaded = TypeVar("Loaded", torch.Tensor, Weight)

#: Tables of rotary frequencies that old files carry and that are computed here instead.
_COMPUTED = ("rotary_emb.inv_freq", "rope.freqs")


@dataclass(frozen=True)
class Stored:
    """A tensor whose header is known and whose data is not read before `load` is called.

    name: as the file calls it.
    dtype: by its name in PyTorch where it has one; "int8" or "int4" of a quantized matrix.
    nbytes: on disk.
    weight: gives a quantized matrix as it is, where `load` dequantizes it.
    kind: of what `weight` gives: "dense", "int8" or "int4".
    fill: writes what `load` gives to a tensor of any type, where that takes less memory.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    load: Callable[[], torch.Tensor]
    weight: Callable[[], Weight] | None = None
    kind: str = "dense"
    fill: Callable[[torch.Tensor], None] | None = None


@dataclass(frozen=True)
class NameTable:
    """How a format calls the canonical tensors; `layer` has a place for `n` and for `kind`."""

    top: Mapping[str, str]
    layer: str
    kinds: Mapping[str, str]

    def __call__(self, canonical: str) -> str:
        """The name in the format of a canonical name."""
        if canonical in self.top:
            return self.top[canonical]
        _, n, kind = canonical.split(".")
        return self.layer.format(n=n, kind=self.kinds[kind])


class StoredCheckpoint(Checkpoint):
    """A checkpoint over tensors by canonical name, already held to the configuration."""

    def __init__(
        self, format: str, path: Path, config: Config, stored: Mapping[str, Stored]
    ) -> None:
        self.format = format
        self.path = path
        self.config = config
        types = (stored[name].dtype for name in ("layers.0.wq", "embed", "norm"))
        self.dtype = next((FLOATS[name] for name in types if name in FLOATS), torch.float32)
        self._stored = stored

    def tensors(self) -> Iterator[TensorInfo]:
        """The stored tensors, by canonical name, in the format's own type."""
        for name, tensor in self._stored.items():
            yield TensorInfo(name, tensor.shape, tensor.dtype, tensor.nbytes)

    def read(self, name: str) -> torch.Tensor:
        """One tensor by canonical name: a view of the map where the stored order allows."""
        return self._loaded(self._find(name).load)

    def read_into(self, name: str, out: torch.Tensor) -> None:
        """Writes one tensor to `out`, a block at a time where it is converted."""
        fill = self._find(name).fill
        if fill is None:
            return super().read_into(name, out)
        with self._blamed():
            fill(out)

    def weight(self, name: str) -> Weight:
        """One matrix by canonical name, as it is stored: quantized ones are not dequantized."""
        load = self._find(name).weight
        return Dense(self.read(name)) if load is None else self._loaded(load)

    def kind(self, name: str) -> str:
        """See `Checkpoint.kind`; of the tensor's header alone."""
        return self._find(name).kind

    def _find(self, name: str) -> Stored:
        if name not in self._stored:
            raise CheckpointError(f"{self.path} holds no tensor {name!r}")
        return self._stored[name]

    def _loaded(self, load: Callable[[], Loaded]) -> Loaded:
        with self._blamed():
            return load()

    def _blamed(self) -> AbstractContextManager[None]:
        return blamed_on(self.path, "it changed or was damaged; open it again")


def select(
    path: Path, config: Config, found: Mapping[str, Stored], rename: NameTable
) -> dict[str, Stored]:
    """The tensors that the configuration asks for, by canonical name, from those of a file.

    Raises `CheckpointError` for a tensor that is missing or has another shape,
    `UnsupportedModelError` for one of another type and for one that a Llama has not.
    """
    chosen: dict[str, Stored] = {}
    for canonical, shape in tensor_shapes(config):
        name = rename(canonical)
        if name not in found:
            raise CheckpointError(f"{path} lacks the tensor {name}: the download is incomplete")
        chosen[canonical] = _checked(path, found[name], shape)
    known = {tensor.name for tensor in chosen.values()} | {rename("output")}
    for name in found:
        if name not in known and not name.endswith(_COMPUTED):
            raise UnsupportedModelError(
                f"{path} holds the tensor {name}, which its configuration does not account for: "
                "give a plain Llama or Mistral, adapters merged"
            )
    return chosen


def _checked(path: Path, tensor: Stored, shape: tuple[int, ...]) -> Stored:
    if tensor.shape != shape:
        raise CheckpointError(
            f"{path}: {tensor.name} is {list(tensor.shape)}, but the configuration makes it "
            f"{list(shape)}: its files are not of one model"
        )
    if tensor.dtype not in FLOATS and tensor.weight is None:
        raise UnsupportedModelError(
            f"{path}: {tensor.name} is {tensor.dtype}: give a checkpoint in "
            "float32, float16 or bfloat16"
        )
    return tensor


def rows_of(where: object, found: Mapping[str, Stored], name: str) -> int:
    """Rows of a matrix by its name in the file, for a configuration that does not tell them."""
    if name not in found or len(found[name].shape) != 2:
        raise CheckpointError(f"{where}: its tensors lack the matrix {name}: download again")
    return found[name].shape[0]


def header(
    name: str, shape: tuple[int, ...], dtype: str, load: Callable[[], torch.Tensor]
) -> Stored:
    """A `Stored` whose bytes follow from its shape and type; 0 for a type that is not read."""
    itemsize = _READ[dtype].itemsize if dtype in _READ else 0
    return Stored(name, shape, dtype, math.prod(shape) * itemsize, load)

"""Files without names: a header, then float32 or quantized tensors in an order that it tells.

llama2.c's and simple-llama's. A matrix may be kept in integers of 8 or 4 bits, whose groups run
over the flat tensor and share a float32 scale. Where groups straddle rows it becomes dense. Of 4
bits the value is what is stored less 8, and the first of two stands in the high bits of a byte.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from llama2gpu.checkpoints.base import LAYER_MATRICES, LAYER_NORMS, tensor_shapes
from llama2gpu.checkpoints.fields import config_from
from llama2gpu.checkpoints.files import file_size, map_file, tokenizers_beside, typed
from llama2gpu.checkpoints.stored import Stored, StoredCheckpoint
from llama2gpu.config import Config
from llama2gpu.errors import CheckpointError
from llama2gpu.quant import Dense, Int4, Int8, Weight
from llama2gpu.quant.pack import UNIT, pack_int4
from llama2gpu.quant.weight import MIDDLE

_PER_LAYER = (*LAYER_MATRICES, *LAYER_NORMS)
#: Values that are converted at a time.
_BLOCK = 1 << 18


@dataclass(frozen=True)
class Flat:
    """What follows the header of a file.

    start: bytes of the header. order: kinds of tensors, each of all layers in a row; "tables" are
    those of RoPE, which are skipped. bits: of a matrix's values, 32 for float32. group: values
    that share a scale. scales_last: the scales follow the integers of all layers, not of each.
    """

    config: Config
    start: int
    order: tuple[str, ...]
    bits: int = 32
    group: int = 0
    scales_last: bool = False

    def runs(self) -> Iterator[tuple[str, int, tuple[int, ...]]]:
        """Kind, how many in a row, and shape of each."""
        shapes = dict(tensor_shapes(replace(self.config, layers=1)))
        for kind in self.order:
            if kind == "tables":
                yield kind, 1, (2, self.config.context, self.config.head_dim // 2)
            elif kind in shapes:
                yield kind, 1, shapes[kind]
            else:
                yield kind, self.config.layers, shapes[f"layers.0.{kind}"]

    def quantizes(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor is kept in integers."""
        return self.bits < 32 and len(shape) == 2

    def nbytes(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Bytes of a tensor's values and of its scales."""
        count = math.prod(shape)
        if self.quantizes(shape):
            return count * self.bits // 8, 4 * (count // self.group)
        return 4 * count, 0

    @property
    def size(self) -> int:
        """Bytes of the whole file; exact, however large."""
        return self.start + sum(count * sum(self.nbytes(shape)) for _, count, shape in self.runs())


def tensor_name(kind: str, n: int) -> str:
    """The canonical name of the nth tensor of a kind."""
    return f"layers.{n}.{kind}" if kind in _PER_LAYER else kind


def flat_config(path: Path, **sizes: int) -> Config:
    """The `Config` of a header's sizes, all but `head_dim`."""
    dim, heads = sizes["dim"], sizes["heads"]
    if heads < 1 or dim % heads:
        raise CheckpointError(
            f"{path}: dim {dim} is not a multiple of {heads} heads: it is damaged, "
            "or another format"
        )
    return config_from(path, head_dim=dim // heads, **sizes)


def open_flat(path: Path, format: str, flat: Flat) -> StoredCheckpoint:
    """The checkpoint of a file whose header is read.

    Raises `CheckpointError` unless the header predicts the file's size to the byte.
    """
    _check_groups(path, flat)
    size = file_size(path)
    if size != flat.size:
        raise CheckpointError(
            f"{path} has {size} bytes, but its {format} header asks for {flat.size}: "
            "download it again, or it is another format"
        )
    checkpoint = StoredCheckpoint(format, path, flat.config, _layout(path, flat))
    if flat.bits < 32:
        checkpoint.quantization = f"int{flat.bits}, group {flat.group}"
    checkpoint.tokenizer_files = tokenizers_beside(path, flat.config.vocab)
    return checkpoint


def _check_groups(path: Path, flat: Flat) -> None:
    for kind, _, shape in flat.runs():
        if not flat.quantizes(shape):
            continue
        whole = flat.group > 0 and flat.group * flat.bits % 8 == 0
        if not whole or math.prod(shape) % flat.group:
            raise CheckpointError(
                f"{path}: groups of {flat.group} do not divide {kind}: download it again"
            )


def _layout(path: Path, flat: Flat) -> dict[str, Stored]:
    stored, offset, data = {}, flat.start, map_file(path, flat.size)
    for kind, count, shape in flat.runs():
        values, scales = flat.nbytes(shape)
        step = values if flat.scales_last else values + scales
        for n in range(count):
            name = tensor_name(kind, n)
            at = offset + n * step
            after = offset + count * values + n * scales if flat.scales_last else at + values
            spans = data[at : at + values], data[after : after + scales]
            stored[name] = _stored(path, flat, name, shape, spans)
        offset += count * (values + scales)
    return {name: stored[name] for name, _ in tensor_shapes(flat.config)}


def _stored(
    path: Path,
    flat: Flat,
    name: str,
    shape: tuple[int, ...],
    spans: tuple[torch.Tensor, torch.Tensor],
) -> Stored:
    nbytes = sum(flat.nbytes(shape))
    if len(shape) == 2 and flat.quantizes(shape):
        matrix = _Matrix(path, name, shape, flat.bits, flat.group, *spans)
        return Stored(name, shape, f"int{flat.bits}", nbytes, matrix.dense, matrix.weight)
    return Stored(name, shape, "float32", nbytes, partial(_view, spans[0], shape))


def _view(span: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    return typed(span, torch.float32).view(shape)


@dataclass(frozen=True)
class _Matrix:
    """A matrix in integers: spans of the file with its values and with its scales."""

    path: Path
    name: str
    shape: tuple[int, int]
    bits: int
    group: int
    values: torch.Tensor
    stored_scales: torch.Tensor

    def dense(self) -> torch.Tensor:
        """The matrix in float32."""
        count, scales = math.prod(self.shape), self._scales()
        data = torch.empty(count)
        step = max(_BLOCK // self.group, 1) * self.group
        for start in range(0, count, step):
            stop = min(start + step, count)
            values = self._integers(start, stop).to(torch.float32)
            values = values.sub_(MIDDLE) if self.bits == 4 else values
            groups = data[start:stop].view(-1, self.group)
            shared = scales[start // self.group : stop // self.group, None]
            torch.mul(values.view(-1, self.group), shared, out=groups)
        return data.view(self.shape)

    def weight(self) -> Weight:
        """The matrix as it is stored, or dense where its groups straddle rows."""
        rows, columns = self.shape
        group = min(self.group, columns)  # a larger one is of whole rows
        if self.group % group or columns % group:
            return Dense(self.dense())
        if self.bits == 4 and (columns % UNIT or group % UNIT):
            return Dense(self.dense())
        scales = self._scales()
        if self.group > group:
            scales = scales.repeat_interleave(self.group // group)
        scales = scales.view(rows, columns // group)
        if self.bits == 8:
            return Int8(self.values.view(torch.int8).view(self.shape), scales)
        return Int4(self._packed(), scales)

    def _packed(self) -> torch.Tensor:
        rows, columns = self.shape
        packed = torch.empty(rows, columns // 8, dtype=torch.int32)
        step = max(_BLOCK // columns, 1)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            values = self._integers(start * columns, stop * columns)
            packed[start:stop] = pack_int4(values.view(-1, columns))
        return packed

    def _integers(self, start: int, stop: int) -> torch.Tensor:
        """Some of the flat values: int8, or 0 to 15 in uint8."""
        if self.bits == 8:
            return self.values[start:stop].view(torch.int8)
        pairs = self.values[start // 2 : stop // 2]
        return torch.stack((pairs >> 4, pairs & 15), -1).flatten()

    def _scales(self) -> torch.Tensor:
        """Scales, float32 `[groups]`."""
        scales = typed(self.stored_scales, torch.float32)
        if not bool(scales.isfinite().all()):
            raise CheckpointError(
                f"{self.path}: the scales of {self.name} hold NaN or infinity: download it again"
            )
        return scales

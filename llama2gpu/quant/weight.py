"""A weight as a value: dense, int8 or int4; what checkpoints give, what a backend prepares."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from llama2gpu.quant.pack import pack_int4, unpack_int4

#: The zero point of an int4 weight that has none of its own.
MIDDLE = 8


@dataclass(frozen=True)
class Dense:
    """An unquantized matrix, `[N, K]`, float32, float16 or bfloat16."""

    data: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Rows N and columns K."""
        return self.data.shape[0], self.data.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes that one full read of the matrix takes."""
        return self.data.nbytes

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """The matrix `[N, K]` in `dtype`."""
        return self.data.to(dtype)

    def rows(self, index: torch.Tensor | slice) -> "Dense":
        """Some of its rows, in that order."""
        return Dense(self.data[index])

    def to(self, device: torch.device) -> "Dense":
        """The same on a device."""
        return Dense(self.data.to(device))


@dataclass(frozen=True)
class Int8:
    """Column k of row n is `data[n, k] · scales[n, k // group]`.

    data: int8 `[N, K]`. scales: float16, bfloat16 or float32 `[N, K / group]`; a
    single group is a scale for each row.
    """

    data: torch.Tensor
    scales: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Rows N and columns K."""
        return self.data.shape[0], self.data.shape[1]

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return self.data.shape[1] // self.scales.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes that one full read of the matrix takes, scales included."""
        return self.data.nbytes + self.scales.nbytes

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """The matrix `[N, K]`: products taken in float32 or wider, where they are exact."""
        wide = torch.promote_types(dtype, torch.float32)
        values = self.data.to(wide).view(*self.scales.shape, self.group)
        return (values * self.scales.to(wide)[:, :, None]).view(self.shape).to(dtype)

    def rows(self, index: torch.Tensor | slice) -> "Int8":
        """Some of its rows, in that order."""
        return Int8(self.data[index], self.scales[index])

    def to(self, device: torch.device) -> "Int8":
        """The same on a device."""
        return Int8(self.data.to(device), self.scales.to(device))


@dataclass(frozen=True)
class Int4:
    """Column k of row n is `(q[n, k] − zeros[n, k // group]) · scales[n, k // group]`, q 0 to 15.

    packed: int32 `[N, K / 8]`, q as `quant.pack` packs it. scales: float16, bfloat16 or float32
    `[N, K / group]`. zeros: uint8 `[N, K / group]`, or None for 8 everywhere. order: int64 `[K]`
    where the columns are stored in another order (GPTQ's act-order): stored column j, whose group
    is j // group, is column `order[j]` of the matrix.
    """

    packed: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None = None
    order: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows N and columns K."""
        return self.packed.shape[0], self.packed.shape[1] * 8

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return self.shape[1] // self.scales.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes that one full read of the matrix takes, scales and zero points included."""
        parts = (self.packed, self.scales, self.zeros, self.order)
        return sum(part.nbytes for part in parts if part is not None)

    def values(self) -> torch.Tensor:
        """q − zero, int8 `[N, K]`, in stored order."""
        rows, groups = self.scales.shape
        q = unpack_int4(self.packed).view(torch.int8).view(rows, groups, self.group)
        zeros = MIDDLE if self.zeros is None else self.zeros.view(torch.int8)[:, :, None]
        return (q - zeros).view(self.shape)

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """The matrix `[N, K]` in its own order of columns."""
        stored = Int8(self.values(), self.scales).dequantize(dtype)
        if self.order is None:
            return stored
        return torch.empty_like(stored).index_copy_(1, self.order, stored)

    def rows(self, index: torch.Tensor | slice) -> "Int4":
        """Some of its rows, in that order."""
        zeros = None if self.zeros is None else self.zeros[index]
        return replace(self, packed=self.packed[index], scales=self.scales[index], zeros=zeros)

    def to(self, device: torch.device) -> "Int4":
        """The same on a device."""
        zeros, order = (x if x is None else x.to(device) for x in (self.zeros, self.order))
        return Int4(self.packed.to(device), self.scales.to(device), zeros, order)


Weight = Dense | Int8 | Int4


def int4(values: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None = None) -> Int4:
    """An `Int4` of values 0 to 15 `[N, K]`, scales and zero points `[N, K / group]`."""
    return Int4(pack_int4(values), scales, None if zeros is None else zeros.to(torch.uint8))


def join_rows(parts: Sequence[Weight]) -> Weight:
    """One matrix of the rows of all parts.

    Quantized parts of one kind, group and order stay as they are; a mixture becomes dense, in
    float32, since one matrix has one form.
    """
    first, *others = parts
    if isinstance(first, Dense) and all(isinstance(part, Dense) for part in others):
        return Dense(torch.cat([part.data for part in parts if isinstance(part, Dense)]))
    if isinstance(first, Int8) and all(_alike(first, part) for part in others):
        alike = [part for part in parts if isinstance(part, Int8)]
        return Int8(*(torch.cat([getattr(p, n) for p in alike]) for n in ("data", "scales")))
    if isinstance(first, Int4) and all(_alike(first, part) for part in others):
        return _join_int4([part for part in parts if isinstance(part, Int4)])
    return Dense(torch.cat([part.dequantize(torch.float32) for part in parts]))


def _alike(a: Weight, b: Weight) -> bool:
    """Whether two quantized matrices can be one."""
    if isinstance(a, Int8) and isinstance(b, Int8):
        return (a.group, a.scales.dtype) == (b.group, b.scales.dtype)
    if not (isinstance(a, Int4) and isinstance(b, Int4)):
        return False
    if (a.group, a.scales.dtype) != (b.group, b.scales.dtype):
        return False
    if a.order is None or b.order is None:
        return a.order is b.order
    return torch.equal(a.order, b.order)


def _join_int4(parts: Sequence[Int4]) -> Int4:
    packed, scales = (torch.cat([getattr(p, n) for p in parts]) for n in ("packed", "scales"))
    if all(part.zeros is None for part in parts):
        return Int4(packed, scales, None, parts[0].order)
    middle = [torch.full(p.scales.shape, MIDDLE, dtype=torch.uint8) for p in parts]
    zeros = [m if p.zeros is None else p.zeros for p, m in zip(parts, middle, strict=True)]
    return Int4(packed, scales, torch.cat(zeros), parts[0].order)

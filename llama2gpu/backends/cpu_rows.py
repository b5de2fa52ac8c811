"""Matrices for the compiled row kernels of a CPU (`kernels/rows.c`), and when to use them."""

import ctypes
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from llama2gpu.backends.base import Norm, Probe
from llama2gpu.backends.matrix import TILE, DenseMatrix, Matrix, gates_first
from llama2gpu.kernels import rows
from llama2gpu.quant import Dense, Int4, Int8, Weight
from llama2gpu.quant.pack import unpack_int4
from llama2gpu.quant.weight import int4

#: Most tokens that the row kernels multiply faster than PyTorch (bench/NOTES.md), by type of the
#: activations; PyTorch's float16 product on a CPU is slower at any number.
FEW_DENSE = {torch.float32: 8, torch.bfloat16: 12, torch.float16: 1 << 30}
#: The same where the processor multiplies bfloat16 by itself, in vectors and not in tiles.
FEW_DENSE_DOTS = 32
#: The same for quantized weights, which a product has to unpack first.
FEW_PACKED = {torch.float32: 64, torch.bfloat16: 1 << 30, torch.float16: 1 << 30}
#: The same where the processor has AMX, whose bfloat16 product is several times faster.
FEW_PACKED_AMX = 64

_LANES = 16
#: Values that are unpacked at a time; of 4 bits, that takes a few times 4 bytes each.
_UNPACKED = 1 << 19


@dataclass(frozen=True)
class Packed:
    """What the kernels read: see `rows.h` and `rows_packed.h`."""

    kind: int
    data: Tensor
    scales: Tensor | None
    zeros: Tensor | None
    shape: tuple[int, int]
    group: int

    @cached_property
    def c(self) -> rows.Matrix:
        """What the kernels take, which points into these tensors."""
        scale_kind = rows.KINDS[self.scales.dtype] if self.scales is not None else 0
        scales, zeros = at(self.scales), at(self.zeros)
        return rows.Matrix(
            self.kind, at(self.data), scale_kind, scales, zeros, *self.shape, self.group
        )


class Rows(Matrix):
    """A matrix whose product with few tokens the row kernels take."""

    compiled = True
    packed: Packed

    @abstractmethod
    def few(self, x: Tensor) -> bool:
        """Whether they are faster for these inputs."""

    def fused(
        self, x: Tensor, norm: Norm | None, residual: Tensor | None, gated: bool
    ) -> Tensor | None:
        """See `Matrix.fused`."""
        return _multiply(x, self.packed, norm, residual, gated) if self.few(x) else None


class DenseRows(Rows, DenseMatrix):
    """A dense matrix."""

    def __init__(self, data: Tensor) -> None:
        DenseMatrix.__init__(self, data, "cpu")
        shape = (data.shape[0], data.shape[1])
        self.packed = Packed(rows.KINDS[data.dtype], data, None, None, shape, shape[1])

    def few(self, x: Tensor) -> bool:
        """See `Rows.few`."""
        if x.dtype == torch.bfloat16 and _has_dots():
            return x.shape[0] <= FEW_DENSE_DOTS
        return x.shape[0] <= FEW_DENSE.get(x.dtype, -1)

    def linear(self, x: Tensor) -> Tensor:
        """See `Matrix.linear`."""
        return _multiply(x, self.packed) if self.few(x) else super().linear(x)


class PackedRows(Rows):
    """A quantized matrix; many tokens get it back, tile by tile, for a matrix product."""

    def __init__(self, packed: Packed) -> None:
        super().__init__(packed.data, packed.scales, packed.zeros)
        self.packed = packed

    def few(self, x: Tensor) -> bool:
        """See `Rows.few`."""
        tokens = x.shape[0]  # len(x) takes microseconds
        return tokens <= FEW_PACKED[x.dtype] and (tokens <= FEW_PACKED_AMX or not _has_amx())

    def linear(self, x: Tensor) -> Tensor:
        """See `Matrix.linear`."""
        if self.few(x):
            return _multiply(x, self.packed)
        out = x.new_empty(len(x), self.packed.shape[0])
        for start, tile in _tiles(self.packed, x.dtype):
            part = torch.mm(x, tile)
            out[:, start : start + tile.shape[1]] = part[:, : out.shape[1] - start]
        return out

    def gated(self, x: Tensor) -> Tensor:
        """See `Matrix.gated`."""
        if self.few(x):
            return _multiply(x, self.packed, gated=True)
        out = x.new_empty(len(x), self.packed.shape[0] // 2)
        for start, tile in _tiles(self.packed, x.dtype):
            part = torch.mm(x, tile)
            value = F.silu(part[:, 0::2]) * part[:, 1::2]
            start //= 2
            out[:, start : start + value.shape[1]] = value[:, : out.shape[1] - start]
        return out


@cache
def _has_amx() -> bool:
    return bool(torch.cpu._is_amx_tile_supported())


@cache
def _has_dots() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported()) and not _has_amx()


def cpu_matrix(weight: Weight, paired: bool = False) -> Matrix | None:
    """The matrix for the row kernels; None where there are none, or they can't take it."""
    return _matrix(weight, paired) if probe_rows().ok else None


@cache
def probe_rows() -> Probe:
    """Whether the row kernels run here, found out by running them on something small."""
    built = rows.library()
    if built.bound is None:
        return Probe(False, built.detail)
    for kind in rows.KINDS:
        for weight in _samples(kind):
            matrix = _matrix(weight)
            assert matrix is not None
            x = (torch.arange(weight.shape[1]) % 5 - 2).to(kind)[None]
            wanted = weight.dequantize(torch.float32) @ x[0].float()
            if not torch.equal(matrix.linear(x)[0].float().round(), wanted):
                return Probe(False, f"{built.detail} gives wrong results")
    return Probe(True, built.detail)


def _samples(dtype: torch.dtype) -> Iterator[Weight]:
    """Small matrices of each kind, whose products are whole numbers, as every type has them."""
    data = torch.arange(64.0).view(2, 32) % 15 - 7
    yield Dense(data.to(dtype))
    yield Int8(data.to(torch.int8), torch.ones(2, 1, dtype=torch.float16))
    count = torch.arange(34 * 64).view(34, 64)  # three blocks of rows, two groups that both add
    row, group = torch.arange(34)[:, None], torch.arange(2)
    scales = torch.tensor([1.0, 2.0]).half().repeat(34, 1)
    yield int4((count * 3 + count // 64) % 16, scales, (row + 5 * group) % 15 + 1)


def _matrix(weight: Weight, paired: bool = False) -> Matrix | None:
    if isinstance(weight, Dense):
        data = (gates_first(weight) if paired else weight).dequantize(weight.data.dtype)
        return DenseRows(data.contiguous()) if data.dtype in rows.KINDS else None
    packed = _pack(weight)
    return None if packed is None else PackedRows(packed)


def _pack(weight: Int8 | Int4) -> Packed | None:
    """Words of 16 rows side by side; None for groups and columns that the kernels don't have."""
    count, columns = weight.shape
    in_word = 8 if isinstance(weight, Int4) else 4
    if columns % in_word:
        return None
    group = next((g for g in (128, 64, 32) if weight.group % g == 0), 0)
    group = weight.group if weight.group == columns or group == 0 else group
    if group not in (32, 64, 128, columns):
        return None
    data = torch.empty(-(-count // _LANES), columns // in_word, _LANES, 4, dtype=torch.uint8)
    step = max(_UNPACKED // columns // _LANES, 1) * _LANES
    for start in range(0, count, step):
        words = _side_by_side(_words(weight.rows(slice(start, start + step))))
        data[start // _LANES :][: len(words)] = words
    repeat = weight.group // group
    scales, zeros = (
        x if x is None else _side_by_side(x.repeat_interleave(repeat, 1))
        for x in (weight.scales, weight.zeros if isinstance(weight, Int4) else None)
    )
    kind = rows.INT4 if isinstance(weight, Int4) else rows.INT8
    return Packed(kind, data, scales, zeros, weight.shape, group)


def _words(weight: Int8 | Int4) -> Tensor:
    """Values as bytes of words, uint8 [N, words, 4]: see `rows_packed.h`."""
    count, columns = weight.shape
    if isinstance(weight, Int8):
        return (weight.data.view(torch.uint8) ^ 128).view(count, columns // 4, 4)
    q = unpack_int4(weight.packed).view(count, columns // 8, 2, 4)
    return q[:, :, 0] | q[:, :, 1] << 4


def _side_by_side(x: Tensor) -> Tensor:
    """[N, M, …] → [N / 16, M, 16, …], rows padded with zeros to a multiple of 16."""
    blocks = -(-len(x) // _LANES)
    padded = x.new_zeros(blocks * _LANES, *x.shape[1:])
    padded[: len(x)] = x
    return padded.view(blocks, _LANES, *x.shape[1:]).transpose(1, 2).contiguous()


def _multiply(
    x: Tensor,
    w: Packed,
    norm: Norm | None = None,
    residual: Tensor | None = None,
    gated: bool = False,
) -> Tensor:
    bound = rows.library().bound
    assert bound is not None
    x = x.contiguous()
    residual = None if residual is None else residual.contiguous()
    tokens, outputs = x.shape[0], w.shape[0] // (2 if gated else 1)
    y = torch.empty(tokens, outputs, dtype=x.dtype)
    weight, eps = (None, 0.0) if norm is None else (norm.weight, norm.eps)
    # what does not fit, the kernel would read from behind the tensor's end
    assert x.shape[1] == w.shape[1]
    assert weight is None or (weight.dtype, *weight.shape) == (torch.float32, w.shape[1])
    assert residual is None or (residual.dtype, *residual.shape) == (x.dtype, *y.shape)
    product = rows.Product(
        ctypes.addressof(w.c), rows.KINDS[x.dtype], tokens, at(x), at(weight), eps, at(residual),
        gated, at(y),
    )  # fmt: skip
    if tokens and bound.rows_matmul(product, torch.get_num_threads()):
        raise MemoryError("no memory for activations")
    return y


def _tiles(w: Packed, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
    """First row and dequantized columns [K, rows] of each tile, some rows past the last too."""
    bound = rows.library().bound
    assert bound is not None
    total, columns = w.data.shape[0] * _LANES, w.shape[1]
    step = max(TILE // columns // _LANES, 1) * _LANES
    for start in range(0, total, step):
        count = min(step, total - start)
        tile = torch.empty(columns, count, dtype=dtype)
        bound.rows_unpack(w.c, start, count, rows.KINDS[dtype], at(tile), torch.get_num_threads())
        yield start, tile


def at(x: Tensor | None) -> int | None:
    """Where a tensor's values begin, for a kernel."""
    return None if x is None else x.data_ptr()

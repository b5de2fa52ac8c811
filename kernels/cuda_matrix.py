"""Launches of the matrix kernels in CUDA C: how a matrix is cut into blocks, and its arguments."""

from dataclasses import dataclass

import torch

from llama2gpu.kernels.cuda import TYPES, Argument, CudaLaunch, Runner
from llama2gpu.kernels.packed import Packed
from llama2gpu.ops.paged import LayerCache

#: Threads of a block, as `matrix.cuh` has them.
THREADS = 128

#: From so many packed rows on, 16 of them a block share what the activations cost.
MANY_ROWS = 4096

#: Most tokens of a packed and of a dense matrix: with more, it is read too often, 4 at a time.
FEW_PACKED, FEW_DENSE = 16, 4


@dataclass(frozen=True)
class Tile:
    """Tokens and rows of a block."""

    tokens: int
    rows: int


def takes(matrix: Packed, tokens: int) -> bool:
    """Whether so many tokens are few enough for the kernels."""
    return tokens <= (FEW_PACKED if matrix.bits <= 8 else FEW_DENSE)


def plan_matrix(matrix: Packed, tokens: int) -> Tile:
    """The tile of a block: a pure function of shapes."""
    if tokens > 1:
        return Tile(4, 4)
    return Tile(1, 16 if matrix.bits <= 8 and matrix.shape[0] >= MANY_ROWS else 8)


def linear(
    run: Runner,
    x: torch.Tensor,
    matrix: Packed,
    *,
    norm: torch.Tensor | None = None,
    eps: float = 0.0,
    residual: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """W · x, or W · RMSNorm(x), plus the residual: [M, K] → [M, N] in the type of x or float32.

    norm: float32 [K], with its eps. residual: [M, N], contiguous.
    """
    kind = out_dtype or x.dtype
    y = torch.empty(len(x), matrix.shape[0], dtype=kind, device=x.device)
    wide = int(kind == torch.float32)
    _launch(run, "linear", x, matrix, norm, (residual, y), (wide,), eps)
    return y


def gate_up(
    run: Runner, x: torch.Tensor, matrix: Packed, *, norm: torch.Tensor, eps: float
) -> torch.Tensor:
    """silu(gate) · up of RMSNorm(x): [M, K] → [M, N / 2]; norm float32 [K]."""
    y = torch.empty(len(x), matrix.shape[0] // 2, dtype=x.dtype, device=x.device)
    _launch(run, "gate_up", x, matrix, norm, (y,), (), eps)
    return y


def qkv(
    run: Runner,
    x: torch.Tensor,
    matrix: Packed,
    *,
    norm: torch.Tensor,
    eps: float,
    rope: tuple[torch.Tensor, torch.Tensor],
    positions: torch.Tensor,
    slots: torch.Tensor,
    cache: LayerCache,
) -> torch.Tensor:
    """RMSNorm(x) through the matrix: q [M, heads, head_dim], and keys and values in the cache.

    rope: cos and sin, float32 [context, head_dim / 2]. positions, slots: int64 [M]. cache: of the
    type of x.
    """
    _, kv_heads, page, head = cache.k.shape
    heads = matrix.shape[0] // head - 2 * kv_heads
    q = torch.empty(len(x), heads, head, dtype=x.dtype, device=x.device)
    places = (*rope, positions, slots, q, cache.k, cache.v)
    _launch(run, "qkv", x, matrix, norm, places, (heads, kv_heads, head, page), eps)
    return q


def dequantize(run: Runner, matrix: Packed, dtype: torch.dtype) -> torch.Tensor:
    """The matrix [N, K] in `dtype`; a dense one as it is, cast where it must be."""
    if matrix.bits > 8:
        return matrix.data.to(dtype)
    y = torch.empty(matrix.shape, dtype=dtype, device=matrix.data.device)
    rows, units = matrix.shape[0], _units(matrix, dtype)
    defines = _defines(matrix, dtype, Tile(1, 1), False)
    arguments = (matrix.data, matrix.scales, matrix.zeros, y, *_sizes(matrix, dtype))
    grid = (-(-rows * units // THREADS), 1, 1)
    run(CudaLaunch("dequantize", "dequantize", grid, THREADS, arguments, defines))
    return y


def aligned(x: torch.Tensor) -> torch.Tensor:
    """The same, contiguous from a multiple of 16 bytes on, as PyTorch allocates."""
    x = x.contiguous()
    return x if x.is_meta or x.data_ptr() % 16 == 0 else x.clone()


def _launch(
    run: Runner, kernel: str, x: torch.Tensor, matrix: Packed, norm: torch.Tensor | None,
    tensors: tuple[torch.Tensor | None, ...], numbers: tuple[int, ...], eps: float,
) -> None:  # fmt: skip
    x, tokens = aligned(x), len(x)
    tile = plan_matrix(matrix, tokens)
    grid = (-(-matrix.shape[0] // tile.rows), -(-tokens // tile.tokens), 1)
    norm = None if norm is None else aligned(norm)
    pointers = (x, matrix.data, matrix.scales, matrix.zeros, norm, *tensors)
    sizes = (tokens, *_sizes(matrix, x.dtype), *numbers)
    arguments: tuple[Argument, ...] = (*pointers, *sizes, float(eps))
    defines = _defines(matrix, x.dtype, tile, norm is not None)
    run(CudaLaunch(kernel, kernel, grid, THREADS, arguments, defines))


def _defines(
    matrix: Packed, dtype: torch.dtype, tile: Tile, has_norm: bool
) -> dict[str, str | int]:
    columns = _columns(matrix, dtype)
    return {
        "TYPE": TYPES[dtype],
        "BITS": matrix.bits if matrix.bits <= 8 else 8 * dtype.itemsize,
        "SCALE": "float" if matrix.scales is None else TYPES[matrix.scales.dtype],
        "ZEROS": int(matrix.zeros is not None),
        "NORM": int(has_norm),
        "ALIGNED": int(matrix.shape[1] % columns == 0),
        "TOKENS": tile.tokens,
        "ROWS": tile.rows,
    }


def _sizes(matrix: Packed, dtype: torch.dtype) -> tuple[int, ...]:
    """rows, k, units, groups, divide: see `matrix.cuh`."""
    rows, k = matrix.shape
    in_group = matrix.group // _columns(matrix, dtype)  # units
    divide = -(-(1 << 32) // in_group) if in_group > 1 else 0
    signed = divide - (1 << 32) if divide >= 1 << 31 else divide
    return rows, k, _units(matrix, dtype), k // matrix.group, signed


def _columns(matrix: Packed, dtype: torch.dtype) -> int:
    """Columns of a unit, which is 16 bytes of a row."""
    return 128 // matrix.bits if matrix.bits <= 8 else 16 // dtype.itemsize


def _units(matrix: Packed, dtype: torch.dtype) -> int:
    return -(-matrix.shape[1] // _columns(matrix, dtype))

"""How matrix kernels are cut into programs: a pure function of architecture and shape."""

from dataclasses import dataclass
from typing import Any

import torch

from llama2gpu.kernels.arch import Arch
from llama2gpu.kernels.launch import INTERPRETED, Plan
from llama2gpu.kernels.packed import Packed

#: Bytes that a warp loads of one row at once: 16 for each of 32 lanes.
WARP_BYTES = 512

#: From so many rows on, blocks of 16 rows are enough to keep a GPU busy.
MANY_ROWS = 4096

#: Rows of a program in the interpreter, where each program takes milliseconds.
INTERPRETER_ROWS = 64

#: Most tokens that a matrix kernel is made for; more go to the vendor's matrix product.
FEW = 64


@dataclass(frozen=True)
class Tiling:
    """The tile of one program, and the warps that share it.

    block_m: tokens; 1 sums in registers, 16 and more are for tensor cores. block_n: rows, even.
    block: of a packed row words, of a dense one columns. pdl: see `Plan`. denormals: whether one
    token takes packed values where they lie in their word.
    """

    block_m: int
    block_n: int
    block: int
    num_warps: int
    pdl: bool = False
    denormals: bool = True


def tiling_for(arch: Arch, matrix: Packed, tokens: int, denormals: bool = True) -> Tiling:
    """The tiling of a matrix and so many tokens on an architecture."""
    if tokens > 1:
        return _dot_tiling(arch, matrix, tokens)
    rows, row_bytes = matrix.shape[0], matrix.columns * matrix.bits // 8
    width = 4 if matrix.bits <= 8 else matrix.bits // 8  # bytes of a word, or of a column
    warps = 2 if row_bytes >= 2 * WARP_BYTES else 1
    block = min(warps * WARP_BYTES // width, max(_power_of_two(row_bytes // width), 4))
    # 16 rows share what the activations cost; dense ones need more registers each
    block_n = 16 if matrix.bits <= 8 and rows >= MANY_ROWS else 8
    if INTERPRETED and rows >= 4 * INTERPRETER_ROWS:
        block_n = INTERPRETER_ROWS
    return Tiling(1, block_n, block, warps, arch.pdl, denormals)


def plan_matrix(
    matrix: Packed, tokens: int, tiling: Tiling, has_norm: bool, **constants: Any
) -> Plan:
    """The plan of a kernel on a matrix with so many tokens."""
    rows, columns = matrix.shape
    grid = (-(-rows // tiling.block_n), -(-tokens // tiling.block_m))
    shared = {
        "K": columns,
        "COLUMNS": matrix.columns,
        "GROUP": matrix.group,
        "BITS": matrix.bits,
        "HAS_ZEROS": matrix.zeros is not None,
        "HAS_NORM": has_norm,
        "BLOCK_M": tiling.block_m,
        "BLOCK_N": tiling.block_n,
        "BLOCK": tiling.block,
        "DENORMALS": tiling.denormals,
        "PDL": tiling.pdl,
    }
    stages = 1 if tiling.block_m == 1 else 2
    return Plan(grid, shared | constants, tiling.num_warps, stages, tiling.pdl)


def matrix_arguments(matrix: Packed) -> dict[str, torch.Tensor | None]:
    """The pointers of a matrix that every matrix kernel takes."""
    return {"p_w": matrix.data, "p_scales": matrix.scales, "p_zeros": matrix.zeros}


def _dot_tiling(arch: Arch, matrix: Packed, tokens: int) -> Tiling:
    block_m = max(16, min(_power_of_two(tokens), FEW))
    if matrix.bits > 8:
        return Tiling(block_m, 64, 64 if matrix.bits == 16 else 32, 4, arch.pdl)
    columns = 128 if matrix.group % 128 == 0 else 256  # at least 16 words to a product
    return Tiling(block_m, 64, max(columns * matrix.bits // 32, 16), 4, arch.pdl)


def _power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()

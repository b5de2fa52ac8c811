"""A packed matrix back as rows of plain numbers, for the vendor's matrix product of many tokens."""

import torch
import triton
import triton.language as tl

from llama2gpu.kernels.launch import Plan, launch
from llama2gpu.kernels.overlap import allow_next, wait_for_inputs
from llama2gpu.kernels.packed import Packed
from llama2gpu.kernels.tiling import matrix_arguments

BLOCK_N, BLOCK_W = 8, 128


@triton.jit
def _dequantize_kernel(
    p_w, p_scales, p_zeros, p_y, N, K: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr,
    BITS: tl.constexpr, HAS_ZEROS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """y [N, K] = (value − zero) · scale."""
    allow_next(PDL)
    IN_WORD: tl.constexpr = 32 // BITS
    rows = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)[:, None]
    words = (tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W))[None, :]
    there = (rows < N) & (words < COLUMNS // IN_WORD)
    tile = tl.load(p_w + rows * (COLUMNS // IN_WORD) + words, mask=there, other=0)
    wait_for_inputs(PDL)  # others may still read what lay at y
    first = words // 4 * (4 * IN_WORD) + words % 4
    for i in tl.static_range(IN_WORD):
        at = first + 4 * i
        inside = there & (at < K)
        group = rows * (K // GROUP) + at // GROUP
        value = ((tile >> BITS * i) & (1 << BITS) - 1).to(tl.float32)
        zero = 1 << BITS - 1
        if HAS_ZEROS:
            zero = tl.load(p_zeros + group, mask=inside, other=0).to(tl.float32)
        scale = tl.load(p_scales + group, mask=inside, other=0.0).to(tl.float32)
        tl.store(
            p_y + rows * K + at, ((value - zero) * scale).to(p_y.dtype.element_ty), mask=inside
        )


def plan_dequantize(matrix: Packed, pdl: bool = False) -> Plan:
    """A program for each block of rows and words."""
    rows, columns = matrix.shape
    words = matrix.columns * matrix.bits // 32
    constants = {
        "K": columns, "COLUMNS": matrix.columns, "GROUP": matrix.group, "BITS": matrix.bits,
        "HAS_ZEROS": matrix.zeros is not None, "BLOCK_N": BLOCK_N, "BLOCK_W": BLOCK_W, "PDL": pdl,
    }  # fmt: skip
    return Plan((triton.cdiv(rows, BLOCK_N), triton.cdiv(words, BLOCK_W)), constants, pdl=pdl)


def dequantize(matrix: Packed, dtype: torch.dtype, *, pdl: bool = False) -> torch.Tensor:
    """The matrix [N, K] in `dtype`; a dense one as it is, cast where it must be."""
    if matrix.bits > 8:
        return matrix.data.to(dtype)
    y = torch.empty(matrix.shape, dtype=dtype, device=matrix.data.device)
    launch(
        _dequantize_kernel, plan_dequantize(matrix, pdl), **matrix_arguments(matrix), p_y=y,
        N=matrix.shape[0],
    )  # fmt: skip
    return y

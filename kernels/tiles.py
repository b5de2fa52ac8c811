"""Sums of a matrix product, a block of rows at a time: the loops that all matrix kernels share.

A program has rows `rows` [BLOCK_N] and all columns; one token is summed in registers, more tokens
[BLOCK_M] on tensor cores. Both also give Σx² of each token, which is all that RMSNorm needs:
y = W(x ∘ w) / √(mean(x²) + eps).
"""

import triton
import triton.language as tl

from llama2gpu.kernels.dot_tiles import dot_sums_dense, dot_sums_packed
from llama2gpu.kernels.vector_tiles import vector_sums_dense, vector_sums_packed


@triton.jit
def sums_of(
    p_x, p_w, p_scales, p_zeros, p_norm, eps, rows, tokens,
    K: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr,
    HAS_ZEROS: tl.constexpr, HAS_NORM: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK: tl.constexpr, DENORMALS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """W · norm(x), float32 [BLOCK_M, BLOCK_N], for rows and tokens that all exist."""
    if BLOCK_M == 1:
        row = p_x + tl.sum(tokens, axis=0) * K
        if BITS > 8:
            sums, squares = vector_sums_dense(
                row, p_w, p_norm, rows, K, HAS_NORM, BLOCK_N, BLOCK, PDL)  # fmt: skip
        else:
            sums, squares = vector_sums_packed(
                row, p_w, p_scales, p_zeros, p_norm, rows, K, COLUMNS, GROUP, BITS, HAS_ZEROS,
                HAS_NORM, BLOCK_N, BLOCK, DENORMALS, PDL)  # fmt: skip
        total = sums[None, :]
        if HAS_NORM:
            total *= tl.rsqrt(squares / K + eps)
    else:
        if BITS > 8:
            total, squares = dot_sums_dense(
                p_x, p_w, p_norm, rows, tokens, K, HAS_NORM, BLOCK_M, BLOCK_N, BLOCK,
                PDL)  # fmt: skip
        else:
            total, squares = dot_sums_packed(
                p_x, p_w, p_scales, p_zeros, p_norm, rows, tokens, K, COLUMNS, GROUP, BITS,
                HAS_ZEROS, HAS_NORM, BLOCK_M, BLOCK_N, BLOCK, PDL)  # fmt: skip
        if HAS_NORM:
            total *= tl.rsqrt(squares / K + eps)[:, None]
    return total

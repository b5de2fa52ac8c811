"""A matrix product with all that may stand before and behind it: RMSNorm, a residual."""

import torch
import triton
import triton.language as tl

from llama2gpu.kernels.launch import launch
from llama2gpu.kernels.overlap import allow_next
from llama2gpu.kernels.packed import Packed
from llama2gpu.kernels.tiles import sums_of
from llama2gpu.kernels.tiling import Tiling, matrix_arguments, plan_matrix


@triton.jit
def _linear_kernel(
    p_x, p_w, p_scales, p_zeros, p_norm, eps, p_residual, p_y, M, N,
    K: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr,
    HAS_ZEROS: tl.constexpr, HAS_NORM: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK: tl.constexpr, DENORMALS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """y = W · norm(x) + residual: x [M, K], y and residual [M, N]."""
    allow_next(PDL)
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    tokens = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    sums = sums_of(
        p_x, p_w, p_scales, p_zeros, p_norm, eps, tl.minimum(rows, N - 1),
        tl.minimum(tokens, M - 1),
        K, COLUMNS, GROUP, BITS, HAS_ZEROS, HAS_NORM, BLOCK_M, BLOCK_N, BLOCK,
        DENORMALS, PDL)  # fmt: skip
    at = tokens.to(tl.int64)[:, None] * N + rows[None, :]
    there = (tokens < M)[:, None] & (rows < N)[None, :]
    if HAS_RESIDUAL:
        sums += tl.load(p_residual + at, mask=there, other=0.0).to(tl.float32)
    tl.store(p_y + at, sums.to(p_y.dtype.element_ty), mask=there)


def linear(
    x: torch.Tensor,
    matrix: Packed,
    tiling: Tiling,
    *,
    norm: torch.Tensor | None = None,
    eps: float = 0.0,
    residual: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """W · x, or W · RMSNorm(x), plus the residual: [M, K] → [M, N] in the type of x or another.

    norm: float32 [K], with its eps. residual: [M, N], contiguous.
    """
    x = x.contiguous()
    y = torch.empty(len(x), matrix.shape[0], dtype=out_dtype or x.dtype, device=x.device)
    plan = plan_matrix(matrix, len(x), tiling, norm is not None, HAS_RESIDUAL=residual is not None)
    launch(
        _linear_kernel, plan, p_x=x, **matrix_arguments(matrix), p_norm=norm, eps=eps,
        p_residual=residual, p_y=y, M=len(x), N=matrix.shape[0],
    )  # fmt: skip
    return y

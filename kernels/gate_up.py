"""The first half of the feed-forward layer in one kernel: RMSNorm, gate and up, SwiGLU."""

import torch
import triton
import triton.language as tl

from llama2gpu.kernels.launch import launch
from llama2gpu.kernels.overlap import allow_next
from llama2gpu.kernels.packed import Packed
from llama2gpu.kernels.tiles import sums_of
from llama2gpu.kernels.tiling import Tiling, matrix_arguments, plan_matrix


@triton.jit
def _gate_up_kernel(
    p_x, p_w, p_scales, p_zeros, p_norm, eps, p_y, M, N,
    K: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr,
    HAS_ZEROS: tl.constexpr, HAS_NORM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK: tl.constexpr, DENORMALS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """y = silu(gate) · up: rows of W are gate 0, up 0, gate 1, …; x [M, K], y [M, N / 2]."""
    allow_next(PDL)
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    tokens = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    sums = sums_of(
        p_x, p_w, p_scales, p_zeros, p_norm, eps, tl.minimum(rows, N - 1),
        tl.minimum(tokens, M - 1),
        K, COLUMNS, GROUP, BITS, HAS_ZEROS, HAS_NORM, BLOCK_M, BLOCK_N, BLOCK,
        DENORMALS, PDL)  # fmt: skip
    gate, up = tl.split(tl.reshape(sums, [BLOCK_M, BLOCK_N // 2, 2]))
    h = gate * tl.sigmoid(gate) * up
    outputs = tl.program_id(0) * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
    at = tokens.to(tl.int64)[:, None] * (N // 2) + outputs[None, :]
    there = (tokens < M)[:, None] & (outputs < N // 2)[None, :]
    tl.store(p_y + at, h.to(p_y.dtype.element_ty), mask=there)


def gate_up(
    x: torch.Tensor, matrix: Packed, tiling: Tiling, *, norm: torch.Tensor, eps: float
) -> torch.Tensor:
    """silu(gate) · up of RMSNorm(x): [M, K] → [M, N / 2]; norm float32 [K]."""
    x = x.contiguous()
    y = torch.empty(len(x), matrix.shape[0] // 2, dtype=x.dtype, device=x.device)
    plan = plan_matrix(matrix, len(x), tiling, True)
    launch(
        _gate_up_kernel, plan, p_x=x, **matrix_arguments(matrix), p_norm=norm, eps=eps, p_y=y,
        M=len(x), N=matrix.shape[0],
    )  # fmt: skip
    return y

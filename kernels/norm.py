"""RMSNorm alone, for where no matrix behind it takes it along."""

import torch
import triton
import triton.language as tl

from llama2gpu.kernels.launch import Plan, launch
from llama2gpu.kernels.overlap import allow_next, wait_for_inputs


@triton.jit
def _rms_norm_kernel(
    p_x, p_weight, p_out, stride, eps, DIM: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One row, held in registers between the two passes over it."""
    allow_next(PDL)
    wait_for_inputs(PDL)
    i_t = tl.program_id(0).to(tl.int64)
    o_k = tl.arange(0, BLOCK)
    b_x = tl.load(p_x + i_t * stride + o_k, mask=o_k < DIM, other=0.0).to(tl.float32)
    b_weight = tl.load(p_weight + o_k, mask=o_k < DIM, other=0.0)
    scale = tl.rsqrt(tl.sum(b_x * b_x, axis=0) / DIM + eps)
    b_y = b_x * scale * b_weight
    tl.store(p_out + i_t * DIM + o_k, b_y.to(p_out.dtype.element_ty), mask=o_k < DIM)


def plan_rms_norm(tokens: int, dim: int, pdl: bool = False) -> Plan:
    """A program for each row; 8 numbers a thread, or more where that needs over 16 warps."""
    block = triton.next_power_of_2(dim)
    warps = min(16, max(1, block // 256))
    return Plan((tokens,), {"DIM": dim, "BLOCK": block, "PDL": pdl}, warps, pdl=pdl)


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, *, pdl: bool = False
) -> torch.Tensor:
    """x / √(mean(x²) + eps) · weight in float32: x [T, dim], weight float32 [dim] → as x."""
    tokens, dim = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    launch(
        _rms_norm_kernel, plan_rms_norm(tokens, dim, pdl), p_x=x, p_weight=weight, p_out=out,
        stride=x.stride(0), eps=eps,
    )  # fmt: skip
    return out

"""SiLU(gate) · up alone, for where the matrix before it does not do it."""

import torch
import triton
import triton.language as tl

from llama2gpu.kernels.launch import Plan, launch
from llama2gpu.kernels.overlap import allow_next, wait_for_inputs

#: Products of one program: 4 a thread, whose pairs are one load of 16 bytes.
BLOCK = 512


@triton.jit
def _silu_mul_kernel(p_x, p_out, count, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """A block of products of neighbors, of all rows in one run."""
    allow_next(PDL)
    wait_for_inputs(PDL)
    start = tl.program_id(0).to(tl.int64) * BLOCK
    o_x, o_y = tl.arange(0, 2 * BLOCK), tl.arange(0, BLOCK)
    b_x = tl.load(p_x + 2 * start + o_x, mask=2 * start + o_x < 2 * count, other=0.0)
    gate, up = tl.split(tl.reshape(b_x.to(tl.float32), (BLOCK, 2)))
    b_y = gate * tl.sigmoid(gate) * up
    tl.store(p_out + start + o_y, b_y.to(p_out.dtype.element_ty), mask=start + o_y < count)


def plan_silu_mul(tokens: int, hidden: int, pdl: bool = False) -> Plan:
    """A program for each block of products."""
    grid = (triton.cdiv(tokens * hidden, BLOCK),)
    return Plan(grid, {"BLOCK": BLOCK, "PDL": pdl}, pdl=pdl)


def silu_mul(x: torch.Tensor, *, pdl: bool = False) -> torch.Tensor:
    """silu(gate) · up, gates and ups interleaved: [T, 2 · hidden] → [T, hidden]."""
    tokens, hidden = x.shape[0], x.shape[1] // 2
    out = torch.empty((tokens, hidden), dtype=x.dtype, device=x.device)
    plan = plan_silu_mul(tokens, hidden, pdl)
    launch(_silu_mul_kernel, plan, p_x=x.contiguous(), p_out=out, count=out.numel())
    return out

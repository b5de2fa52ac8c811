"""Rows of the embedding, gathered from a dense table or from a quantized one."""

from dataclasses import replace

import torch
import triton
import triton.language as tl

from llama2gpu.kernels.launch import Plan, launch
from llama2gpu.kernels.overlap import allow_next, wait_for_inputs
from llama2gpu.quant import Dense, Int8, Weight
from llama2gpu.quant.pack import UNIT
from llama2gpu.quant.weight import MIDDLE

#: Columns that a program gathers at most.
BLOCK = 1024


@triton.jit
def _embed_kernel(
    p_tokens, p_table, p_out, DIM: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """A block of one token's row."""
    allow_next(PDL)
    wait_for_inputs(PDL)
    i_t = tl.program_id(0).to(tl.int64)
    o_k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(p_tokens + i_t)
    b_x = tl.load(p_table + row * DIM + o_k, mask=o_k < DIM, other=0.0)
    tl.store(p_out + i_t * DIM + o_k, b_x.to(p_out.dtype.element_ty), mask=o_k < DIM)


@triton.jit
def _embed_quantized_kernel(
    p_tokens, p_values, p_scales, p_zeros, p_order, p_out,
    DIM: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr, UNIT: tl.constexpr,
    MIDDLE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A block of one token's row, (q − zero) · scale in float32.

    values: int8 [N, DIM], or int32 [N, DIM / 8] as `quant.pack` packs it.
    """
    allow_next(PDL)
    wait_for_inputs(PDL)
    i_t = tl.program_id(0).to(tl.int64)
    o_k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_k = o_k < DIM
    row = tl.load(p_tokens + i_t)
    o_group = row * (DIM // GROUP) + o_k // GROUP
    if BITS == 8:
        b_q = tl.load(p_values + row * DIM + o_k, mask=m_k, other=0).to(tl.int32)
    else:
        o_word = o_k // UNIT * 4 + o_k % 4
        b_word = tl.load(p_values + row * (DIM // 8) + o_word, mask=m_k, other=0)
        b_q = (b_word >> (o_k % UNIT // 4 * 4)) & 15
        if p_zeros is None:
            b_q -= MIDDLE
        else:
            b_q -= tl.load(p_zeros + o_group, mask=m_k, other=0).to(tl.int32)
    b_scale = tl.load(p_scales + o_group, mask=m_k, other=0.0).to(tl.float32)
    b_x = b_q.to(tl.float32) * b_scale
    o_out = o_k if p_order is None else tl.load(p_order + o_k, mask=m_k, other=0)
    tl.store(p_out + i_t * DIM + o_out, b_x.to(p_out.dtype.element_ty), mask=m_k)


def plan_embed(tokens: int, dim: int, pdl: bool = False) -> Plan:
    """A program for each token and block of columns."""
    block = min(BLOCK, triton.next_power_of_2(dim))
    grid = (tokens, triton.cdiv(dim, block))
    constants = {"DIM": dim, "BLOCK": block, "PDL": pdl}
    return Plan(grid, constants, max(1, block // 256), pdl=pdl)


def plan_embed_quantized(tokens: int, dim: int, group: int, bits: int, pdl: bool = False) -> Plan:
    """As `plan_embed`, of rows with a scale for each `group` columns."""
    plain = plan_embed(tokens, dim, pdl)
    constants = {"GROUP": group, "BITS": bits, "UNIT": UNIT, "MIDDLE": MIDDLE}
    return replace(plain, constants={**plain.constants, **constants})


def embed(
    tokens: torch.Tensor, weight: Weight, dtype: torch.dtype, *, pdl: bool = False
) -> torch.Tensor:
    """Rows of an embedding [vocab, dim] in `dtype`: tokens int64 [T] → [T, dim]."""
    count, dim = len(tokens), weight.shape[1]
    out = torch.empty((count, dim), dtype=dtype, device=tokens.device)
    if isinstance(weight, Dense):
        plan = plan_embed(count, dim, pdl)
        launch(_embed_kernel, plan, p_tokens=tokens, p_table=weight.data, p_out=out)
        return out
    if isinstance(weight, Int8):
        bits, values, zeros, order = 8, weight.data, None, None
    else:
        bits, values, zeros, order = 4, weight.packed, weight.zeros, weight.order
    plan = plan_embed_quantized(count, dim, weight.group, bits, pdl)
    launch(
        _embed_quantized_kernel, plan, p_tokens=tokens, p_values=values, p_scales=weight.scales,
        p_zeros=zeros, p_order=order, p_out=out,
    )  # fmt: skip
    return out

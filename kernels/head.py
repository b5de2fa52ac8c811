"""The head in one kernel: RMSNorm, logits, and the tokens that are drawn from them.

Each program leaves the best of its rows for each token. Of a group of programs the last one takes
the best of the group, and of all groups the last one takes the best of all: about as many groups
as programs in one, so that neither has much to read.
"""

import torch
import triton
import triton.language as tl

from llama2gpu.kernels.launch import Plan, launch
from llama2gpu.kernels.overlap import allow_next
from llama2gpu.kernels.packed import Packed
from llama2gpu.kernels.sample import (
    best_left,
    best_of,
    choose,
    empty_drawn,
    empty_parts,
    heat,
    is_last,
    leave,
)
from llama2gpu.kernels.tiles import sums_of
from llama2gpu.kernels.tiling import Tiling, matrix_arguments, plan_matrix
from llama2gpu.ops.sample import SampleParams


@triton.jit
def _head_kernel(
    p_x, p_w, p_scales, p_zeros, p_norm, eps, p_logits, p_temperature, p_seed, p_draw,
    p_best, p_peak, p_total, p_counters, p_tokens, p_logprobs, M, N,
    GREEDY: tl.constexpr, BLOCKS: tl.constexpr, GROUPS: tl.constexpr, MEMBERS: tl.constexpr,
    LANES: tl.constexpr, K: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr,
    BITS: tl.constexpr, HAS_ZEROS: tl.constexpr, HAS_NORM: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK: tl.constexpr, DENORMALS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """logits [M, N] = W · norm(x); of each row a token, and its log-probability.

    best, peak, total [M, BLOCKS + GROUPS]; counters: GROUPS + 1 for each block of tokens.
    """
    allow_next(PDL)
    i_b, i_m = tl.program_id(0), tl.program_id(1)
    rows = i_b * BLOCK_N + tl.arange(0, BLOCK_N)
    tokens = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    here = tl.minimum(tokens, M - 1)
    sums = sums_of(
        p_x, p_w, p_scales, p_zeros, p_norm, eps, tl.minimum(rows, N - 1), here,
        K, COLUMNS, GROUP, BITS, HAS_ZEROS, HAS_NORM, BLOCK_M, BLOCK_N, BLOCK,
        DENORMALS, PDL)  # fmt: skip
    p_row, m_v = p_logits + here.to(tl.int64) * N, (rows < N)[None]
    tl.store(p_row[:, None] + rows[None], sums, mask=(tokens < M)[:, None] & m_v)

    score = sums
    if not GREEDY:
        temperature = tl.load(p_temperature + here)[:, None]
        seed, draw = tl.load(p_seed + here)[:, None], tl.load(p_draw + here)[:, None]
        warm = temperature > 0
        hot = heat(sums, tl.where(warm, temperature, 1.0), seed, draw, rows[None])
        score = tl.where(warm, hot, sums)
    best, peak, total = best_of(tl.where(m_v, sums, -float("inf")), score, rows[None], m_v)
    i_g, at = i_b // MEMBERS, here * (BLOCKS + GROUPS)
    # past M the last token is computed again, and the same left in the same place
    leave(p_best, p_peak, p_total, at + i_b, best, peak, total)
    p_counters += i_m * (GROUPS + 1)
    if is_last(p_counters + i_g, tl.minimum(BLOCKS - i_g * MEMBERS, MEMBERS)):
        o_b = i_g * MEMBERS + tl.arange(0, MEMBERS)
        at_b, m_b = at[:, None] + o_b[None], (o_b < BLOCKS)[None]
        best, peak, total = best_left(p_best, p_peak, p_total, at_b, m_b)
        leave(p_best, p_peak, p_total, at + BLOCKS + i_g, best, peak, total)
        if is_last(p_counters + GROUPS, GROUPS):
            o_g = tl.arange(0, LANES)
            at_g, m_g = at[:, None] + BLOCKS + o_g[None], (o_g < GROUPS)[None]
            best, peak, total = best_left(p_best, p_peak, p_total, at_g, m_g)
            choose(p_row, p_tokens + here, p_logprobs + here, best, peak, total)


def plan_head(matrix: Packed, tokens: int, tiling: Tiling, greedy: bool) -> Plan:
    """A program for each block of rows, in groups of about the root of their number."""
    blocks = triton.cdiv(matrix.shape[0], tiling.block_n)
    members = 1 << (blocks - 1).bit_length() // 2
    groups = triton.cdiv(blocks, members)
    constants = {
        "GREEDY": greedy, "BLOCKS": blocks, "GROUPS": groups, "MEMBERS": members,
        "LANES": triton.next_power_of_2(groups),
    }  # fmt: skip
    return plan_matrix(matrix, tokens, tiling, True, **constants)


def takes(params: SampleParams) -> bool:
    """Whether a token can be drawn from its logit alone: nothing but noise is added to it."""
    plain = params.bias is None and params.generated is None
    return plain and (params.greedy or not params.truncated)


def count_counters(plan: Plan) -> int:
    """Counters that a launch takes."""
    groups: int = plan.constants["GROUPS"]
    return plan.grid[1] * (groups + 1)


def head(
    x: torch.Tensor, matrix: Packed, plan: Plan, *, norm: torch.Tensor, eps: float,
    params: SampleParams, counters: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Tokens int64 [M], their log-probabilities and all logits, float32 [M, N], of x [M, K].

    norm: float32 [K]. params: such as `takes`. counters: int32 zeros, `count_counters`, which they
    are again afterwards.
    """
    x = x.contiguous()
    (rows, vocab), device = (len(x), matrix.shape[0]), x.device
    logits = torch.empty(rows, vocab, dtype=torch.float32, device=device)
    parts = plan.constants["BLOCKS"] + plan.constants["GROUPS"]
    tokens, logprobs = empty_drawn(rows, device)
    launch(
        _head_kernel, plan, p_x=x, **matrix_arguments(matrix), p_norm=norm, eps=eps,
        p_logits=logits, p_temperature=params.temperature, p_seed=params.seed, p_draw=params.draw,
        **empty_parts(rows, parts, device), p_counters=counters, p_tokens=tokens,
        p_logprobs=logprobs, M=rows, N=vocab,
    )  # fmt: skip
    return tokens, logprobs, logits

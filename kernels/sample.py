"""Drawing the next tokens on the device: `llama2gpu.ops.sample` is the definition.

At most three launches, for any number of sequences: bias and penalties where there are any; where
rows are truncated, the least score that each keeps; then noise, the largest, and its probability.
"""

import torch
import triton
import triton.language as tl

from llama2gpu.kernels.launch import Plan, launch
from llama2gpu.kernels.truncate import find_floor, sort_key
from llama2gpu.ops.sample import SampleParams

#: Tokens of a program that draws, for few sequences and for many.
FEW, MANY = 1024, 2048

#: No finite float32 is less; in its place −inf would be subtracted from itself.
_LEAST = tl.constexpr(torch.finfo(torch.float32).min)
_MOST_INT = tl.constexpr(0x7FFFFFFF)
_LEAST_INT64 = tl.constexpr(-(1 << 63))


@triton.jit
def uniform(seed, draw, o_v):
    """The number between 0 and 1, neither, of vocabulary indices; see `ops.noise`."""
    low, high = draw.to(tl.uint32), (draw >> 32).to(tl.uint32)
    word, _, _, _ = tl.philox(seed, o_v.to(tl.uint32), low, high, low * 0)
    return ((word >> 9).to(tl.float32) + 0.5) * 2.0**-23


@triton.jit
def _penalize_kernel(
    p_logits, p_bias, p_generated, p_prompted, p_repetition, p_presence, p_frequency, p_scores,
    VOCAB: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of a row with the bias added and the penalties taken."""
    i_s, o_v = tl.program_id(1), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at, m_v = i_s.to(tl.int64) * VOCAB + o_v, o_v < VOCAB
    b_x = tl.load(p_logits + at, mask=m_v, other=0.0)
    if p_bias is not None:
        b_x += tl.load(p_bias + at, mask=m_v, other=0.0)
    if p_generated is not None:
        count = tl.load(p_generated + at, mask=m_v, other=0)
        prompted = tl.load(p_prompted + at, mask=m_v, other=0) != 0
        factor = tl.load(p_repetition + i_s)
        repeated = tl.where(b_x > 0, tl.div_rn(b_x, factor), b_x * factor)
        b_x = tl.where(prompted | (count > 0), repeated, b_x)
        b_x -= tl.where(count > 0, tl.load(p_presence + i_s), 0.0)
        b_x -= tl.load(p_frequency + i_s) * count.to(tl.float32)
    tl.store(p_scores + at, b_x, mask=m_v)


@triton.jit
def _draw_kernel(
    p_logits, p_scores, p_floor, p_temperature, p_seed, p_draw, p_best, p_peak, p_total,
    p_counter, p_tokens, p_logprobs,
    GREEDY: tl.constexpr, VOCAB: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
    LANES: tl.constexpr,
):  # fmt: skip
    """The best of a block of a row; the row's last program takes the best of all blocks."""
    i_b, i_s = tl.program_id(0), tl.program_id(1)
    p_row = p_logits + i_s.to(tl.int64) * VOCAB
    o_v = i_b * BLOCK + tl.arange(0, BLOCK)
    m_v = o_v < VOCAB
    b_logits = tl.load(p_row + o_v, mask=m_v, other=-float("inf"))
    peak = tl.maximum(tl.max(b_logits, axis=0), _LEAST)
    total = tl.sum(tl.exp(b_logits - peak), axis=0)
    b_score = b_logits
    if p_scores is not None:
        p_score = p_scores + i_s.to(tl.int64) * VOCAB + o_v
        b_score = tl.load(p_score, mask=m_v, other=-float("inf"))
    if not GREEDY:
        temperature = tl.load(p_temperature + i_s)
        if temperature > 0:
            b_hot = tl.div_rn(b_score, temperature)
            u = uniform(tl.load(p_seed + i_s), tl.load(p_draw + i_s), o_v)
            b_hot -= tl.log(-tl.log(u))
            if p_floor is not None:
                b_hot = tl.where(sort_key(b_score) >= tl.load(p_floor + i_s), b_hot, -float("inf"))
            b_score = b_hot
    # the key above the index, which falls: the largest is the first of the best
    b_rank = (sort_key(b_score).to(tl.int64) << 32) | (o_v ^ 0x7FFFFFFF).to(tl.int64)
    b_rank = tl.where(m_v, b_rank, _LEAST_INT64)
    at = i_s * BLOCKS + i_b
    tl.store(p_best + at, tl.max(b_rank, axis=0))
    tl.store(p_peak + at, peak)
    tl.store(p_total + at, total)
    if tl.atomic_add(p_counter + i_s, 1, sem="acq_rel") == BLOCKS - 1:
        o_b = tl.arange(0, LANES)
        m_b = o_b < BLOCKS
        o_b += i_s * BLOCKS
        best = tl.load(p_best + o_b, mask=m_b, other=_LEAST_INT64, cache_modifier=".cg")
        peaks = tl.load(p_peak + o_b, mask=m_b, other=_LEAST, cache_modifier=".cg")
        totals = tl.load(p_total + o_b, mask=m_b, other=0.0, cache_modifier=".cg")
        token = tl.max(best, axis=0).to(tl.int32) ^ 0x7FFFFFFF
        peak = tl.max(peaks, axis=0)
        total = tl.sum(totals * tl.exp(peaks - peak), axis=0)
        tl.store(p_tokens + i_s, token.to(tl.int64))
        tl.store(p_logprobs + i_s, tl.load(p_row + token) - peak - tl.log(total))
        tl.store(p_counter + i_s, 0)  # for the next launch


def plan_penalize(rows: int, vocab: int) -> Plan:
    """A program for each block of tokens of each row."""
    grid = (triton.cdiv(vocab, FEW), rows)
    return Plan(grid, {"VOCAB": vocab, "BLOCK": FEW})


def plan_draw(rows: int, vocab: int, greedy: bool) -> Plan:
    """A program for each block of tokens of each row, so that one row keeps many busy."""
    block = FEW if rows <= 8 else MANY
    blocks = triton.cdiv(vocab, block)
    constants = {"GREEDY": greedy, "VOCAB": vocab, "BLOCK": block, "BLOCKS": blocks}
    lanes = {"LANES": triton.next_power_of_2(blocks)}
    return Plan((blocks, rows), constants | lanes, num_warps=4 if block == FEW else 8)


def sample(
    logits: torch.Tensor, params: SampleParams, counters: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens int64 [S] and their log-probabilities float32 [S]: see `ops.sample.sample`.

    logits: float32 [S, vocab]. counters: int32, at least S, zeros, which they are again
    afterwards; made here where not given.
    """
    logits = logits.contiguous()
    (rows, vocab), device = logits.shape, logits.device
    scores = penalize(logits, params)
    floor = None
    if params.truncated and not params.greedy:
        floor = find_floor(logits if scores is None else scores, params)
    if counters is None:
        counters = torch.zeros(rows, dtype=torch.int32, device=device)
    plan = plan_draw(rows, vocab, params.greedy)
    partial = (rows, plan.constants["BLOCKS"])
    tokens = torch.empty(rows, dtype=torch.int64, device=device)
    logprobs = torch.empty(rows, dtype=torch.float32, device=device)
    launch(
        _draw_kernel,
        plan,
        p_logits=logits,
        p_scores=scores,
        p_floor=floor,
        p_temperature=params.temperature,
        p_seed=params.seed,
        p_draw=params.draw,
        p_best=torch.empty(partial, dtype=torch.int64, device=device),
        p_peak=torch.empty(partial, dtype=torch.float32, device=device),
        p_total=torch.empty(partial, dtype=torch.float32, device=device),
        p_counter=counters,
        p_tokens=tokens,
        p_logprobs=logprobs,
    )
    return tokens, logprobs


def penalize(logits: torch.Tensor, params: SampleParams) -> torch.Tensor | None:
    """Logits with bias and penalties, float32 [S, vocab]; None where there are none."""
    if params.bias is None and params.generated is None:
        return None
    scores = torch.empty_like(logits)
    launch(
        _penalize_kernel,
        plan_penalize(*logits.shape),
        p_logits=logits,
        p_bias=params.bias,
        p_generated=params.generated,
        p_prompted=params.prompted,
        p_repetition=params.repetition,
        p_presence=params.presence,
        p_frequency=params.frequency,
        p_scores=scores,
    )
    return scores

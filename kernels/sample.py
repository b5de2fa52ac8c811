"""Drawing the next tokens on the device: `llama2gpu.ops.sample` is the definition.

At most three launches, for any number of sequences: bias and penalties where there are any; where
rows are truncated, the least score that each keeps; then noise, the largest, and its probability.
"""

import torch
import triton
import triton.language as tl

from llama2gpu.kernels.launch import Plan, launch
from llama2gpu.kernels.overlap import allow_next, wait_for_inputs
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
def quotient(x, y):
    """x / y of float32, rounded as `tl.div_rn` does, which takes a call and registers for it.

    In float64, where an error of 2^-51 is too small to move what lies between two float32.
    """
    wide, r = y.to(tl.float64), (1.0 / y).to(tl.float64)
    r *= 2.0 - wide * r
    r *= 2.0 - wide * r
    return (x.to(tl.float64) * r).to(tl.float32)


@triton.jit
def heat(b_score, temperature, seed, draw, o_v):
    """Scores over the temperature, with the noise by which the largest is a draw."""
    return quotient(b_score, temperature) - tl.log(-tl.log(uniform(seed, draw, o_v)))


@triton.jit
def best_of(b_logits, b_score, o_v, m_v):
    """Of the last axis the rank of the best score, the peak of the logits and their Σ exp.

    A rank is the score's key above the index, which falls: the largest is the first of the best.
    The peak is finite, unless a logit is not; Σ exp is that of the logits less the peak.
    """
    peak = tl.maximum(tl.max(b_logits, axis=-1), _LEAST)
    total = tl.sum(tl.exp(b_logits - tl.expand_dims(peak, -1)), axis=-1)
    b_rank = (sort_key(b_score).to(tl.int64) << 32) | (o_v ^ _MOST_INT).to(tl.int64)
    return tl.max(tl.where(m_v, b_rank, _LEAST_INT64), axis=-1), peak, total


@triton.jit
def leave(p_best, p_peak, p_total, at, best, peak, total):
    """Stores what `best_of` gives, for another program."""
    tl.store(p_best + at, best)
    tl.store(p_peak + at, peak)
    tl.store(p_total + at, total)


@triton.jit
def is_last(p_counter, count):
    """Whether `count` − 1 other programs were here; then the counter is 0 for the next launch."""
    tl.debug_barrier()  # all threads have stored before one of them says so
    last = tl.atomic_add(p_counter, 1, sem="acq_rel") == count - 1
    if last:
        tl.store(p_counter, 0)
    return last


@triton.jit
def best_left(p_best, p_peak, p_total, at, m_at):
    """What `best_of` would give for all that was left at `at`, whose last axis goes."""
    # past the first-level cache, which may hold what an earlier launch wrote
    best = tl.load(p_best + at, mask=m_at, other=_LEAST_INT64, cache_modifier=".cg")
    peaks = tl.load(p_peak + at, mask=m_at, other=_LEAST, cache_modifier=".cg")
    totals = tl.load(p_total + at, mask=m_at, other=0.0, cache_modifier=".cg")
    peak = tl.max(peaks, axis=-1)
    total = tl.sum(totals * tl.exp(peaks - tl.expand_dims(peak, -1)), axis=-1)
    return tl.max(best, axis=-1), peak, total


@triton.jit
def choose(p_row, p_token, p_logprob, best, peak, total):
    """Stores the best token of all and its log-probability; `p_row`: the logits."""
    token = best.to(tl.int32) ^ _MOST_INT
    tl.store(p_token, token.to(tl.int64))
    logit = tl.load(p_row + token, cache_modifier=".cg")
    tl.store(p_logprob, logit - peak - tl.log(total))


@triton.jit
def _penalize_kernel(
    p_logits, p_bias, p_generated, p_prompted, p_repetition, p_presence, p_frequency, p_scores,
    VOCAB: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A block of a row with the bias added and the penalties taken."""
    allow_next(PDL)
    wait_for_inputs(PDL)
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
    LANES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The best of a block of a row; the row's last program takes the best of all blocks."""
    allow_next(PDL)
    wait_for_inputs(PDL)
    i_b, i_s = tl.program_id(0), tl.program_id(1)
    p_row = p_logits + i_s.to(tl.int64) * VOCAB
    o_v = i_b * BLOCK + tl.arange(0, BLOCK)
    m_v = o_v < VOCAB
    b_logits = tl.load(p_row + o_v, mask=m_v, other=-float("inf"))
    b_score = b_logits
    if p_scores is not None:
        p_score = p_scores + i_s.to(tl.int64) * VOCAB + o_v
        b_score = tl.load(p_score, mask=m_v, other=-float("inf"))
    if not GREEDY:
        temperature = tl.load(p_temperature + i_s)
        if temperature > 0:
            b_hot = heat(b_score, temperature, tl.load(p_seed + i_s), tl.load(p_draw + i_s), o_v)
            if p_floor is not None:
                b_hot = tl.where(sort_key(b_score) >= tl.load(p_floor + i_s), b_hot, -float("inf"))
            b_score = b_hot
    best, peak, total = best_of(b_logits, b_score, o_v, m_v)
    leave(p_best, p_peak, p_total, i_s * BLOCKS + i_b, best, peak, total)
    if is_last(p_counter + i_s, BLOCKS):
        o_b = tl.arange(0, LANES)
        at = i_s * BLOCKS + o_b
        best, peak, total = best_left(p_best, p_peak, p_total, at, o_b < BLOCKS)
        choose(p_row, p_tokens + i_s, p_logprobs + i_s, best, peak, total)


def plan_penalize(rows: int, vocab: int, pdl: bool = False) -> Plan:
    """A program for each block of tokens of each row."""
    grid = (triton.cdiv(vocab, FEW), rows)
    return Plan(grid, {"VOCAB": vocab, "BLOCK": FEW, "PDL": pdl}, pdl=pdl)


def plan_draw(rows: int, vocab: int, greedy: bool, pdl: bool = False) -> Plan:
    """A program for each block of tokens of each row, so that one row keeps many busy."""
    block = FEW if rows <= 8 else MANY
    blocks = triton.cdiv(vocab, block)
    constants = {
        "GREEDY": greedy, "VOCAB": vocab, "BLOCK": block, "BLOCKS": blocks,
        "LANES": triton.next_power_of_2(blocks), "PDL": pdl,
    }  # fmt: skip
    return Plan((blocks, rows), constants, num_warps=4 if block == FEW else 8, pdl=pdl)


def sample(
    logits: torch.Tensor, params: SampleParams, counters: torch.Tensor | None = None, *,
    pdl: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Tokens int64 [S] and their log-probabilities float32 [S]: see `ops.sample.sample`.

    logits: float32 [S, vocab]. counters: int32, at least S, zeros, which they are again
    afterwards; made here where not given.
    """
    logits = logits.contiguous()
    (rows, vocab), device = logits.shape, logits.device
    scores = penalize(logits, params, pdl=pdl)
    floor = None
    if params.truncated and not params.greedy:
        floor = find_floor(logits if scores is None else scores, params, pdl=pdl)
    if counters is None:
        counters = torch.zeros(rows, dtype=torch.int32, device=device)
    plan = plan_draw(rows, vocab, params.greedy, pdl)
    tokens, logprobs = empty_drawn(rows, device)
    launch(
        _draw_kernel, plan, p_logits=logits, p_scores=scores, p_floor=floor,
        p_temperature=params.temperature, p_seed=params.seed, p_draw=params.draw,
        **empty_parts(rows, plan.constants["BLOCKS"], device), p_counter=counters, p_tokens=tokens,
        p_logprobs=logprobs,
    )  # fmt: skip
    return tokens, logprobs


def empty_drawn(rows: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Room for tokens and their log-probabilities."""
    tokens = torch.empty(rows, dtype=torch.int64, device=device)
    return tokens, torch.empty(rows, dtype=torch.float32, device=device)


def empty_parts(rows: int, parts: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Room for what programs `leave`, as arguments of a kernel."""
    kinds = {"p_best": torch.int64, "p_peak": torch.float32, "p_total": torch.float32}
    return {
        name: torch.empty((rows, parts), dtype=kind, device=device) for name, kind in kinds.items()
    }


def penalize(
    logits: torch.Tensor, params: SampleParams, *, pdl: bool = False
) -> torch.Tensor | None:
    """Logits with bias and penalties, float32 [S, vocab]; None where there are none."""
    known = params.generated is not None and params.prompted is not None
    if params.bias is None and not known:
        return None
    (rows, vocab), scores = logits.shape, torch.empty_like(logits)
    generated = params.generated if known else None
    launch(
        _penalize_kernel, plan_penalize(rows, vocab, pdl), p_logits=logits, p_bias=params.bias,
        p_generated=generated, p_prompted=params.prompted, p_repetition=params.repetition,
        p_presence=params.presence, p_frequency=params.frequency, p_scores=scores,
    )  # fmt: skip
    return scores

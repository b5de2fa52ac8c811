"""What top-k, top-p and min-p keep of each row of scores: all from one score on, its floor.

Nothing is sorted. Scores become integers of the same order, and the floor is found by halving the
range between two of them. That takes some ten to twenty passes, so they go over little: first over
the peaks of a row, then over what is as large as the peaks say, few scores unless the row is flat.
"""

import torch
import triton
import triton.language as tl

from llama2gpu.kernels.launch import Plan, launch
from llama2gpu.kernels.overlap import allow_next, wait_for_inputs
from llama2gpu.ops.sample import SampleParams

#: Of a program; each takes 4 scores at a time.
LANES = 512

_LOG2_E = tl.constexpr(1.4426950408889634)
#: No key is larger; and of numbers, none is as small as the other.
_MOST_INT, _NOTHING = tl.constexpr(0x7FFFFFFF), tl.constexpr(-0x7FFFFFFF)

#: Below all scores, but not so far that a multiple is infinite.
_LOW = tl.constexpr(-1e30)


@triton.jit
def sort_key(x):
    """An int32 for each float32, in the same order, NaN at the ends; one for both zeros."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _tile(LANES: tl.constexpr):
    """Offsets of 4 neighbors for each lane, [LANES, 4]."""
    return 4 * tl.arange(0, LANES)[:, None] + tl.arange(0, 4)[None]


@triton.jit
def _around(p_kept, counts, at, peak, rate, WEIGHTED: tl.constexpr, LANES: tl.constexpr):
    """How much has keys of `at` and up, the greatest key below, and the least of those.

    Lane i holds `counts[i]` times 4 scores, tile after tile. There is as much as there are scores
    or, WEIGHTED, as the sum of exp2((score − peak) · rate).
    """
    mass = tl.zeros([LANES, 4], tl.float32)
    below = tl.full([LANES, 4], _NOTHING, tl.int32)
    above = tl.full([LANES, 4], _MOST_INT, tl.int32)
    for i in range(tl.max(counts, axis=0)):
        m_x = (i < counts)[:, None]
        b_x = tl.load(p_kept + i * (4 * LANES) + _tile(LANES), mask=m_x, other=-float("inf"))
        key = sort_key(b_x)
        within = key >= at
        mass += tl.where(within, tl.exp2((b_x - peak) * rate) if WEIGHTED else 1.0, 0.0)
        below = tl.maximum(below, tl.where(within, below, key))
        above = tl.minimum(above, tl.where(within, key, above))
    return tl.sum(mass), tl.max(below), tl.min(above)


@triton.jit
def _least_kept(
    p_kept, counts, low, most, limit, peak, rate, WEIGHTED: tl.constexpr, LANES: tl.constexpr
):
    """The least key from `low` on above which there is less than `limit`; `most` is the largest.

    Ends where one key is left, whatever the range: both its ends close in on keys that are there.
    """
    high = most + 1
    while low + 1 < high:
        middle = (low & high) + ((low ^ high) >> 1)
        mass, below, above = _around(p_kept, counts, middle, peak, rate, WEIGHTED, LANES)
        enough = mass < limit
        low = tl.where(enough, low, tl.minimum(above, high - 1))  # above `high` were NaN alone
        high = tl.where(enough, below + 1, high)
    return low


@triton.jit
def _peaks(p_row, rate, VOCAB: tl.constexpr, LANES: tl.constexpr):
    """The largest score at each place of all tiles, [LANES, 4], and the sum as of `_around`."""
    peaks = tl.full([LANES, 4], _LOW, tl.float32)
    mass = tl.zeros([LANES, 4], tl.float32)
    for start in tl.range(0, VOCAB, 4 * LANES, num_stages=4):
        o_v = start + _tile(LANES)
        b_x = tl.load(p_row + o_v, mask=o_v < VOCAB, other=-float("inf"))
        higher = tl.maximum(peaks, b_x)
        mass = mass * tl.exp2((peaks - higher) * rate) + tl.exp2((b_x - higher) * rate)
        peaks = higher
    return peaks, tl.sum(mass * tl.exp2((peaks - tl.max(peaks)) * rate))


@triton.jit
def _keep(p_row, p_kept, bound, VOCAB: tl.constexpr, LANES: tl.constexpr):
    """Copies what has keys of `bound` and up, with its neighbors; how many times 4, [LANES]."""
    counts = tl.zeros([LANES], tl.int32)
    for start in tl.range(0, VOCAB, 4 * LANES, num_stages=4):
        o_v = start + _tile(LANES)
        b_x = tl.load(p_row + o_v, mask=o_v < VOCAB, other=-float("inf"))
        some = tl.max(sort_key(b_x), axis=1) >= bound
        p_x = p_kept + counts[:, None] * (4 * LANES) + _tile(LANES)
        tl.store(p_x, b_x, mask=some[:, None])
        counts += some.to(tl.int32)
    tl.debug_barrier()
    return counts


@triton.jit
def _floor_kernel(
    p_scores, p_temperature, p_top_k, p_top_p, p_min_p, p_kept, p_floor,
    VOCAB: tl.constexpr, LANES: tl.constexpr, KEPT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One row's floor, as a key."""
    allow_next(PDL)
    wait_for_inputs(PDL)
    i_s = tl.program_id(0)
    p_row = p_scores + i_s.to(tl.int64) * VOCAB
    p_kept += i_s.to(tl.int64) * KEPT
    temperature, top_k = tl.load(p_temperature + i_s), tl.load(p_top_k + i_s)
    top_p, min_p = tl.load(p_top_p + i_s), tl.load(p_min_p + i_s)
    floor = tl.full([], _NOTHING, tl.int32)
    if (temperature > 0) & ((top_k > 0) | (top_p < 1) | (min_p > 0)):
        rate = _LOG2_E / temperature
        peaks, mass = _peaks(p_row, rate, VOCAB, LANES)
        peak = tl.max(peaks)
        most = sort_key(peak)
        if min_p > 0:
            floor = sort_key(peak + temperature * tl.log(min_p))
        if (top_k > 0) | (top_p < 1):
            # where the peaks alone have enough, the row has: a bound, near where few are likely
            tl.store(p_kept + _tile(LANES), peaks)
            tl.debug_barrier()
            counts, k = tl.full([LANES], 1, tl.int32), tl.minimum(top_k, VOCAB).to(tl.float32)
            bound = tl.full([], _NOTHING, tl.int32)
            if top_k > 0:
                bound = _least_kept(p_kept, counts, bound, most, k, peak, rate, False, LANES)
            else:
                limit = top_p * mass
                bound = _least_kept(p_kept, counts, floor, most, limit, peak, rate, True, LANES)
            tl.debug_barrier()
            counts = _keep(p_row, p_kept, bound, VOCAB, LANES)
            if top_k > 0:
                bound = _least_kept(p_kept, counts, bound, most, k, peak, rate, False, LANES)
                mass, _, _ = _around(p_kept, counts, bound, peak, rate, True, LANES)
            floor = tl.maximum(floor, bound)
            if top_p < 1:
                limit = top_p * mass
                floor = _least_kept(p_kept, counts, floor, most, limit, peak, rate, True, LANES)
    tl.store(p_floor + i_s, floor)


def plan_floor(rows: int, vocab: int, pdl: bool = False) -> Plan:
    """A program for each row, and a thread for each lane."""
    lanes = min(LANES, triton.next_power_of_2(triton.cdiv(vocab, 4)))
    kept = triton.cdiv(vocab, 4 * lanes) * 4 * lanes
    constants = {"VOCAB": vocab, "LANES": lanes, "KEPT": kept, "PDL": pdl}
    return Plan((rows,), constants, max(1, lanes // 32), pdl=pdl)


def find_floor(scores: torch.Tensor, params: SampleParams, *, pdl: bool = False) -> torch.Tensor:
    """For each row the least `sort_key` that is kept, int32 [S]; scores float32 [S, vocab]."""
    (rows, vocab), device = scores.shape, scores.device
    plan = plan_floor(rows, vocab, pdl)
    floor = torch.empty(rows, dtype=torch.int32, device=device)
    kept = torch.empty((rows, plan.constants["KEPT"]), dtype=torch.float32, device=device)
    launch(
        _floor_kernel, plan, p_scores=scores, p_temperature=params.temperature,
        p_top_k=params.top_k, p_top_p=params.top_p, p_min_p=params.min_p, p_kept=kept,
        p_floor=floor,
    )  # fmt: skip
    return floor

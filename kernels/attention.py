"""Flash-decoding: attention of one query a sequence over its paged keys and values.

A program has the query heads of one key-value head and a share of the sequence's tokens. Its warps
are each on their own until the loop has ended: a warp keeps the maximum, sum and output of the keys
that it saw. It loads keys and values, 16 bytes a lane, to where the tensor cores take them: a
product's terms may come in any order, so the head's numbers are numbered as the lanes hold them.

The last program of a sequence and head adds up what all of them found.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from llama2gpu.kernels.arch import Arch
from llama2gpu.kernels.launch import INTERPRETED, Plan, launch
from llama2gpu.kernels.prefill import LOG2E, LOWEST, find_row, load_vectors, operand
from llama2gpu.ops.paged import LayerCache

#: Warps of a program, and keys that a warp takes at a time; together the tokens of a tile.
WARPS, KEYS = 4, 16
TILE = WARPS * KEYS
#: Query heads of a program at most: rows of a tensor core's tile, or what registers hold.
ROWS, PLAIN_ROWS = 16, 4
#: Programs that a multiprocessor holds at a time.
RESIDENT = 2
MOST_SPLITS = 64
#: Outputs that each thread holds of the parts that it adds up at a time.
PARTS_A_THREAD = 64


class Workspace(NamedTuple):
    """What the programs of one launch leave for each other; launches one after another share it.

    partial, sums: float32, outputs, and their maxima and sums. counters: int32, zeros in between.
    """

    partial: torch.Tensor
    sums: torch.Tensor
    counters: torch.Tensor


@triton.jit
def _along(SIZE: tl.constexpr, BEHIND: tl.constexpr):
    """0 … SIZE − 1 along the axis that has BEHIND others behind it."""
    o_x = tl.arange(0, SIZE)
    for _ in tl.static_range(BEHIND):
        o_x = tl.expand_dims(o_x, -1)
    return o_x


@triton.jit
def _load_scales(p_scale, o_row, BLOCK_G: tl.constexpr):
    """Scales of keys [R, WARPS, 1, 4, 2] for all heads, laid out as scores [WARPS, BLOCK_G, KEYS].

    Lanes of different heads load the same: that is less than to hand the scales on.
    """
    R: tl.constexpr = o_row.shape[0]
    W: tl.constexpr = o_row.shape[1]
    LANES: tl.constexpr = 8 if BLOCK_G > 8 else BLOCK_G
    b_scale = tl.load(p_scale + tl.broadcast_to(o_row, (R, W, LANES, 4, 2)))
    b_scale = tl.reshape(tl.permute(b_scale, (1, 2, 0, 3, 4)), (W, 1, LANES, R * 8))
    b_scale = tl.broadcast_to(b_scale, (W, BLOCK_G // LANES, LANES, R * 8))
    return tl.reshape(b_scale, (W, BLOCK_G, R * 8))


@triton.jit
def _store_out(p_out, b_out, o_d, rows, HEAD_DIM: tl.constexpr):
    """The first `rows` rows of an output; `o_d`: which number of a head each column is."""
    o_r = tl.arange(0, b_out.shape[0])
    m_out = (o_r < rows)[:, None] & (o_d < HEAD_DIM)[None]
    p_out += o_r[:, None] * HEAD_DIM + o_d[None]
    tl.store(p_out, b_out.to(p_out.dtype.element_ty), mask=m_out)


@triton.jit
def _add_up(
    p_partial, p_sums, used, rows,
    SPLITS: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The output [BLOCK_G, BLOCK_D] of all splits that are used, CHUNK of them at a time."""
    o_r, o_d = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_D)
    b_max = tl.full((BLOCK_G,), LOWEST, tl.float32)
    b_sum = tl.zeros((BLOCK_G,), tl.float32)
    b_out = tl.zeros((BLOCK_G, BLOCK_D), tl.float32)
    for first in tl.static_range(0, SPLITS, CHUNK):
        o_i = first + tl.arange(0, CHUNK)
        m_part = (o_i < used)[:, None] & (o_r < rows)[None]
        o_part = o_i[:, None] * BLOCK_G + o_r[None]
        # past the first-level cache, which may hold what an earlier launch wrote
        b_top = tl.load(p_sums + o_part * 2, mask=m_part, other=LOWEST, cache_modifier=".cg")
        b_part = tl.load(p_sums + o_part * 2 + 1, mask=m_part, other=1.0, cache_modifier=".cg")
        p_out = p_partial + o_part[:, :, None] * BLOCK_D + o_d
        b_x = tl.load(p_out, mask=m_part[:, :, None], other=0.0, cache_modifier=".cg")
        b_new = tl.maximum(b_max, tl.max(b_top, axis=0))
        b_shrink, b_weight = tl.exp2(b_max - b_new), tl.exp2(b_top - b_new[None])
        b_sum = b_sum * b_shrink + tl.sum(b_part * b_weight, axis=0)
        b_out = b_out * b_shrink[:, None] + tl.sum(b_x * b_weight[:, :, None], axis=0)
        b_max = b_new
    return b_out / b_sum[:, None]


@triton.jit
def _decode_kernel(
    p_q, p_k, p_v, p_k_scale, p_v_scale, p_lengths, p_table, p_out, p_partial, p_sums, p_counters,
    q_stride, width, scale, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr,
    PAGE: tl.constexpr, SPLITS: tl.constexpr, BLOCK_G: tl.constexpr, PARTIAL_G: tl.constexpr,
    BLOCK_D: tl.constexpr, W: tl.constexpr, KEYS: tl.constexpr, K_LANE: tl.constexpr,
    V_LANE: tl.constexpr, RUN: tl.constexpr, DOT: tl.constexpr, OPERAND: tl.constexpr,
    CHUNK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One share of one sequence's tokens, for up to BLOCK_G heads of a group.

    DOT: by tensor cores, whose operands are of type OPERAND. Lane 4n + j holds terms RUN · j and up
    of column n of the second operand, RUN of them in a row. So a warp loads 8 keys by 4 lanes each,
    K_LANE numbers a lane; and values of 8 tokens by 4 lanes for pairs of them times 8 lanes for
    the numbers, V_LANE a lane.
    """
    R: tl.constexpr = KEYS // 8
    TILE: tl.constexpr = W * KEYS
    BLOCKS: tl.constexpr = (GROUP + BLOCK_G - 1) // BLOCK_G
    K_TURNS: tl.constexpr = BLOCK_D // (4 * K_LANE)
    V_TURNS: tl.constexpr = BLOCK_D // (8 * V_LANE)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    i_s, i_hb, i_split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    i_h, i_b = i_hb // BLOCKS, i_hb % BLOCKS
    length = tl.load(p_lengths + i_s)
    share = tl.cdiv(tl.cdiv(length, TILE), SPLITS) * TILE
    begin = i_split * share
    if begin >= length:
        return
    end = tl.minimum(begin + share, length)
    p_table += i_s * width

    # the head's numbers as terms [turn, run, lane, RUN] and as columns [turn, V_LANE, lane]
    o_n = tl.arange(0, BLOCK_D)
    o_qd = (o_n // (4 * K_LANE) * 4 + o_n // RUN % 4) * K_LANE
    o_qd += o_n // (4 * RUN) % (K_LANE // RUN) * RUN + o_n % RUN
    o_od = (o_n // (8 * V_LANE) * 8 + o_n % 8) * V_LANE + o_n // 8 % V_LANE
    o_g = i_b * BLOCK_G + tl.arange(0, BLOCK_G)
    m_q = (o_g < GROUP)[:, None] & (o_qd < HEAD_DIM)[None]
    p_q += i_s * q_stride + i_h * GROUP * HEAD_DIM
    b_q = tl.load(p_q + o_g[:, None] * HEAD_DIM + o_qd[None], mask=m_q, other=0.0)
    b_q = tl.broadcast_to(b_q[None], (W, BLOCK_G, BLOCK_D)).to(OPERAND)

    # token and number of keys [turn, r, warp, 8, lane, K_LANE]
    o_kt = (_along(R, 4) * W + _along(W, 3)) * 8 + _along(8, 2)
    o_kd = (_along(K_TURNS, 5) * 4 + _along(4, 1)) * K_LANE + _along(K_LANE, 0)
    # of values [turn, r, 2, warp, lane, 4, V_LANE]
    o_vt = (_along(R, 5) * W + _along(W, 3)) * 8 + _along(4, 1) * 2 + _along(2, 4)
    o_vd = (_along(V_TURNS, 6) * 8 + _along(8, 2)) * V_LANE + _along(V_LANE, 0)
    # token of scales [r, warp, 1, 4, 2] and of scores [warp, key]
    o_st = (_along(R, 4) * W + _along(W, 3)) * 8 + _along(4, 1) * 2 + _along(2, 0)
    o_t = tl.reshape((_along(R, 1) * W + _along(W, 2)) * 8 + _along(8, 0), (W, KEYS))

    b_max = tl.full((W, BLOCK_G), LOWEST, tl.float32)
    b_sum = tl.zeros((W, BLOCK_G), tl.float32)
    b_out = tl.zeros((W, BLOCK_G, BLOCK_D), tl.float32)
    row = find_row(p_table, begin, length, i_h, KV_HEADS, PAGE)
    for start in range(begin, end, TILE):
        if PAGE % TILE == 0:
            o_k, o_v, o_s = row + o_kt, row + o_vt, row + o_st
            row = find_row(p_table, start + TILE, length, i_h, KV_HEADS, PAGE)
        else:
            o_k = find_row(p_table, start + o_kt, length, i_h, KV_HEADS, PAGE)
            o_v = find_row(p_table, start + o_vt, length, i_h, KV_HEADS, PAGE)
            o_s = find_row(p_table, start + o_st, length, i_h, KV_HEADS, PAGE)
        b_k = load_vectors(p_k, o_k, o_kd, HEAD_DIM, BLOCK_D)
        b_v = load_vectors(p_v, o_v, o_vd, HEAD_DIM, BLOCK_D)
        b_k = tl.reshape(b_k, (K_TURNS, R, W, 8, 4, K_LANE // RUN, RUN)).to(OPERAND)
        b_k = tl.reshape(tl.permute(b_k, (2, 0, 5, 4, 6, 1, 3)), (W, BLOCK_D, KEYS))
        if DOT:
            b_s = tl.dot(b_q, b_k, input_precision="ieee")
        else:
            b_s = tl.sum(b_q[:, :, :, None] * b_k[:, None], axis=2)
        if p_k_scale is not None:
            b_s *= _load_scales(p_k_scale, o_s, BLOCK_G)
        b_s = tl.where((start + o_t < length)[:, None], b_s, float("-inf"))
        b_new = tl.maximum(b_max, tl.max(b_s, axis=2) * scale)
        b_shrink = tl.exp2(b_max - b_new)
        b_p = tl.exp2(b_s * scale - b_new[:, :, None])
        b_sum = b_sum * b_shrink + tl.sum(b_p, axis=2)
        b_max = b_new
        if p_v_scale is not None:
            if tl.float16 == OPERAND:  # too narrow for a probability times a small scale
                p_scale = p_v_scale + tl.broadcast_to(o_v[None], (1, R, 2, W, 8, 4, 1))
                b_v = b_v.to(tl.float32) * tl.load(p_scale, mask=start + o_vt < length, other=0.0)
            else:
                b_p *= _load_scales(p_v_scale, o_s, BLOCK_G)
        if RUN == 4:  # a lane's four keys in a row are two pairs of its scores
            b_p = tl.permute(tl.reshape(b_p, (W, BLOCK_G, R, 4, 2)), (0, 1, 3, 2, 4))
            b_p = tl.reshape(b_p, (W, BLOCK_G, KEYS))
            b_v = tl.permute(b_v.to(OPERAND), (3, 5, 1, 2, 0, 6, 4))
        else:
            b_v = tl.permute(b_v.to(OPERAND), (3, 1, 5, 2, 0, 6, 4))
        b_v = tl.reshape(b_v, (W, KEYS, BLOCK_D))
        b_out *= b_shrink[:, :, None]
        if DOT:
            b_out = tl.dot(b_p.to(OPERAND), b_v, b_out, input_precision="ieee")
        else:
            b_out += tl.sum(b_p[:, :, :, None] * b_v[:, None], axis=2)

    b_new = tl.max(b_max, axis=0)
    b_shrink = tl.exp2(b_max - b_new[None])
    b_max, b_sum = b_new, tl.sum(b_sum * b_shrink, axis=0)
    b_out = tl.sum(b_out * b_shrink[:, :, None], axis=0)
    p_out += (i_s * KV_HEADS + i_h) * GROUP * HEAD_DIM + i_b * BLOCK_G * HEAD_DIM
    rows = tl.minimum(GROUP - i_b * BLOCK_G, BLOCK_G)
    if SPLITS == 1:
        _store_out(p_out, b_out / b_sum[:, None], o_od, rows, HEAD_DIM)
        return
    cell = i_s * KV_HEADS * BLOCKS + i_hb
    p_partial += cell * SPLITS * PARTIAL_G * BLOCK_D
    p_sums += cell * SPLITS * PARTIAL_G * 2
    o_r = tl.arange(0, BLOCK_G)
    o_part = i_split * PARTIAL_G + o_r
    tl.store(p_partial + o_part[:, None] * BLOCK_D + o_n[None], b_out, mask=(o_r < rows)[:, None])
    tl.store(p_sums + o_part * 2, b_max, mask=o_r < rows)
    tl.store(p_sums + o_part * 2 + 1, b_sum, mask=o_r < rows)
    tl.debug_barrier()  # all threads have stored before one of them says so
    used = tl.cdiv(length, share)
    if tl.atomic_add(p_counters + cell, 1, sem="acq_rel") == used - 1:
        b_all = _add_up(p_partial, p_sums, used, rows, SPLITS, PARTIAL_G, BLOCK_D, CHUNK)
        _store_out(p_out, b_all, o_od, rows, HEAD_DIM)
        tl.store(p_counters + cell, 0)


def plan_decode(
    sequences: int, heads: int, kv_heads: int, head_dim: int, page: int, dtype: torch.dtype,
    kv_dtype: torch.dtype, arch: Arch, splits: int, pdl: bool = False,
) -> Plan:  # fmt: skip
    """A program for each sequence, block of a key-value head's query heads, and split.

    dtype: of queries and output; kv_dtype: of the cache, the same or int8. float32 is left to plain
    arithmetic, since tensor cores would round it.
    """
    group, wide = heads // kv_heads, dtype == torch.float32
    block_d = max(16, triton.next_power_of_2(head_dim))
    most = max(1, min(PLAIN_ROWS, 256 // block_d))
    block_g = min(most, triton.next_power_of_2(group)) if wide else ROWS
    partial_g = min(block_g, triton.next_power_of_2(group))
    parts = PARTS_A_THREAD * WARPS * 32 // (partial_g * block_d)
    lane = 16 // kv_dtype.itemsize
    pdl = pdl and arch.pdl and not INTERPRETED
    constants = {
        "KV_HEADS": kv_heads, "GROUP": group, "HEAD_DIM": head_dim, "PAGE": page, "SPLITS": splits,
        "BLOCK_G": block_g, "PARTIAL_G": partial_g, "BLOCK_D": block_d, "W": WARPS,
        "KEYS": KEYS // 2 if wide else KEYS, "K_LANE": min(lane, block_d // 4),
        "V_LANE": min(lane, block_d // 8), "RUN": 2 if wide else 4 // kv_dtype.itemsize,
        "DOT": not wide, "OPERAND": operand(dtype), "CHUNK": max(1, min(splits, parts)), "PDL": pdl,
    }  # fmt: skip
    blocks = triton.cdiv(group, block_g)
    return Plan((sequences, kv_heads * blocks, splits), constants, num_warps=WARPS, pdl=pdl)


def splits_for(length: int, sequences: int, kv_heads: int, multiprocessors: int) -> int:
    """Into how many shares to split sequences of up to `length` tokens: a power of two.

    The fewest that keep the multiprocessors 85 % as busy as the best number would, each share of a
    tile at least. Source: the heuristic of FlashAttention, `num_splits_heuristic`.
    """
    slots, tiles = RESIDENT * multiprocessors, triton.cdiv(max(length, 1), TILE)
    choices = [1 << i for i in range(MOST_SPLITS.bit_length()) if 1 << i < 2 * tiles]

    def busy(splits: int) -> float:
        waves = sequences * kv_heads * splits / slots
        return waves / math.ceil(waves)

    best = max(busy(splits) for splits in choices)
    return next(splits for splits in choices if busy(splits) >= 0.85 * best)


def make_workspace(
    sequences: int, heads: int, kv_heads: int, head_dim: int, splits: int, device: torch.device
) -> Workspace:
    """Room for launches of up to so many sequences and splits."""
    rows = sequences * kv_heads * triton.next_power_of_2(heads // kv_heads)
    block_d = max(16, triton.next_power_of_2(head_dim))
    return Workspace(
        partial=torch.empty(rows * splits * block_d, dtype=torch.float32, device=device),
        sums=torch.empty(rows * splits * 2, dtype=torch.float32, device=device),
        counters=torch.zeros(rows, dtype=torch.int32, device=device),
    )


def decode_attention(
    q: torch.Tensor, cache: LayerCache, lengths: torch.Tensor, block_table: torch.Tensor, *,
    splits: int, workspace: Workspace, arch: Arch, pdl: bool = False,
) -> torch.Tensor:  # fmt: skip
    """Attention of one query a sequence: q [S, heads, head_dim] → the same shape.

    lengths: int32 [S], cached tokens, at least 1; block_table: int32 [S, P]; see `Backend.attend`.
    Neither is read on the host, so that a captured launch serves sequences of any length.
    """
    (sequences, heads, head_dim), (_, kv_heads, page, _) = q.shape, cache.k.shape
    if q.stride()[1:] != (head_dim, 1):
        q = q.contiguous()
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    plan = plan_decode(
        sequences, heads, kv_heads, head_dim, page, q.dtype, cache.k.dtype, arch, splits, pdl
    )
    launch(
        _decode_kernel, plan, p_q=q, p_k=cache.k, p_v=cache.v, p_k_scale=cache.k_scale,
        p_v_scale=cache.v_scale, p_lengths=lengths, p_table=block_table, p_out=out,
        p_partial=workspace.partial, p_sums=workspace.sums, p_counters=workspace.counters,
        q_stride=q.stride(0), width=block_table.stride(0), scale=LOG2E / math.sqrt(head_dim),
    )  # fmt: skip
    return out

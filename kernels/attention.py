"""Flash-decoding: attention of one query a sequence over its paged keys and values.

A program has the query heads of one key-value head and a share of the sequence's tokens. Its warps
are each on their own until the loop has ended: a warp keeps the maximum, sum and output of the keys
that it saw. It loads keys and values, 16 bytes a lane, to where the tensor cores take them: a
product's terms may come in any order, so the head's numbers are numbered as the lanes hold them.

The last program of a sequence and head adds up what all of them found.
"""

import math

import torch
import triton
import triton.language as tl

from llama2gpu.kernels.arch import Arch
from llama2gpu.kernels.attention_cache import (
    LOG2E,
    LOWEST,
    find_mask,
    find_row,
    load_vectors,
    swap,
    unpack,
)
from llama2gpu.kernels.attention_parts import hand_in, store_out
from llama2gpu.kernels.attention_plan import plan_decode
from llama2gpu.kernels.launch import launch
from llama2gpu.kernels.splits import Workspace
from llama2gpu.ops.paged import LayerCache


@triton.jit
def _along(SIZE: tl.constexpr, BEHIND: tl.constexpr):
    """0 … SIZE − 1 along the axis that has BEHIND others behind it."""
    o_x = tl.arange(0, SIZE)
    for _ in tl.static_range(BEHIND):
        o_x = tl.expand_dims(o_x, -1)
    return o_x


@triton.jit
def _load(
    p_x, o_row, o_d, mask, LANE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    WORDS: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """LANE numbers of the cache's vectors from `o_d` on, [..., LANE]; WORDS: by int32, unpacked."""
    if WORDS:
        p_w, o_w = p_x.to(tl.pointer_type(tl.int32)), o_d // 4 + tl.arange(0, LANE // 4)
        b_w = load_vectors(p_w, o_row, o_w, HEAD_DIM // 4, BLOCK_D // 4)
        return unpack(b_w, mask, OPERAND)
    else:
        return load_vectors(p_x, o_row, o_d + tl.arange(0, LANE), HEAD_DIM, BLOCK_D)


@triton.jit
def _load_scales(p_scale, o_row, BLOCK_G: tl.constexpr):
    """Scales of keys [W, 8, 1, R] for all heads, laid out as scores [W, KEYS, BLOCK_G].

    Lanes of different heads load the same: that is less than to hand the scales on.
    """
    W: tl.constexpr = o_row.shape[0]
    R: tl.constexpr = o_row.shape[3]
    LANES: tl.constexpr = min(BLOCK_G, 4)
    PAIR: tl.constexpr = 2 if BLOCK_G > 4 else 1
    b_scale = tl.load(p_scale + tl.broadcast_to(o_row, (W, 8, LANES, R)))
    b_scale = tl.reshape(tl.permute(b_scale, (0, 3, 1, 2)), (W, R * 8, 1, LANES, 1))
    b_scale = tl.broadcast_to(b_scale, (W, R * 8, BLOCK_G // (LANES * PAIR), LANES, PAIR))
    return tl.reshape(b_scale, (W, R * 8, BLOCK_G))


@triton.jit
def _dot(b_x, b_y, b_z, TURN: tl.constexpr):
    """b_z [W, M, N] plus b_x [W, M, K] times b_y [W, K, N]; TURN: as the transposed product."""
    if TURN:
        b_x, b_y = tl.permute(b_y, (0, 2, 1)), tl.permute(b_x, (0, 2, 1))
        b_z = tl.dot(b_x, b_y, tl.permute(b_z, (0, 2, 1)), input_precision="ieee")
        return tl.permute(b_z, (0, 2, 1))
    else:
        return tl.dot(b_x, b_y, b_z, input_precision="ieee")


@triton.jit
def _multiply(b_x, b_y):
    """b_x [W, M, K] times b_y [W, K, N] in plain arithmetic."""
    b_x, b_y = tl.permute(b_x, (0, 2, 1)), tl.permute(b_y, (0, 2, 1))
    return tl.permute(tl.sum(b_y[:, :, :, None] * b_x[:, None], axis=2), (0, 2, 1))


@triton.jit
def _decode_kernel(
    p_q, p_k, p_v, p_k_scale, p_v_scale, p_lengths, p_table, p_out, p_partial, p_sums, p_counters,
    q_stride, width, scale, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr,
    PAGE: tl.constexpr, SPLITS: tl.constexpr, BLOCK_G: tl.constexpr, PARTIAL_G: tl.constexpr,
    BLOCK_D: tl.constexpr, W: tl.constexpr, KEYS: tl.constexpr, K_LANE: tl.constexpr,
    V_LANE: tl.constexpr, RUN: tl.constexpr, WORDS: tl.constexpr, DOT: tl.constexpr,
    TURN: tl.constexpr, OPERAND: tl.constexpr, CHUNK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One share of one sequence's tokens, for up to BLOCK_G heads of a group.

    DOT: by tensor cores, whose operands are of type OPERAND: keys times queries are scores, keys by
    heads, and values times these are outputs. Lane 4n + j holds terms RUN · j and up of row n, RUN
    of them in a row. So a warp loads 8 keys by 4 lanes each, K_LANE numbers a lane; and values of
    8 tokens by 4 lanes for pairs of them times 8 lanes for the numbers, V_LANE a lane. Where heads
    are the columns, there need be only 8 of them, and registers for as many.
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
    p_out += (i_s * KV_HEADS + i_h) * GROUP * HEAD_DIM + i_b * BLOCK_G * HEAD_DIM
    rows = tl.minimum(GROUP - i_b * BLOCK_G, BLOCK_G)
    length = tl.load(p_lengths + i_s)
    share = tl.cdiv(tl.cdiv(length, TILE), SPLITS) * TILE
    begin = i_split * share
    if begin >= length:
        if i_split == 0:  # nothing is cached, as where a batch is padded
            b_none = tl.zeros((BLOCK_G, BLOCK_D), tl.float32)
            store_out(p_out, b_none, tl.arange(0, BLOCK_D), rows, HEAD_DIM)
        return
    end = tl.minimum(begin + share, length)
    p_table += i_s * width

    # the head's numbers as terms [turn, run, lane, RUN] and as columns [turn, V_LANE, lane]
    o_n = tl.arange(0, BLOCK_D)
    o_qd = (o_n // (4 * K_LANE) * 4 + o_n // RUN % 4) * K_LANE
    o_qd += o_n // (4 * RUN) % (K_LANE // RUN) * RUN + o_n % RUN
    o_od = (o_n // (8 * V_LANE) * 8 + o_n % 8) * V_LANE + o_n // 8 % V_LANE
    if WORDS:
        o_qd, o_od = swap(o_qd), swap(o_od)
    o_g = i_b * BLOCK_G + tl.arange(0, BLOCK_G)
    m_q = (o_g < GROUP)[None] & (o_qd < HEAD_DIM)[:, None]
    p_q += i_s * q_stride + i_h * GROUP * HEAD_DIM
    b_q = tl.load(p_q + o_g[None] * HEAD_DIM + o_qd[:, None], mask=m_q, other=0.0)
    b_q = tl.broadcast_to(b_q[None], (W, BLOCK_D, BLOCK_G)).to(OPERAND)

    # A warp's keys are numbered as rows of a tile of scores: r · 8 + n is its token n · R + r.
    # token and number of keys [turn, r, warp, 8, lane, K_LANE]
    o_kt = _along(W, 3) * KEYS + _along(8, 2) * R + _along(R, 4)
    o_kd = (_along(K_TURNS, 5) * 4 + _along(4, 1)) * K_LANE
    # of values [turn, r, 2, warp, lane, 4, V_LANE]
    o_vt = _along(R, 5) * 8 + _along(4, 1) * 2 + _along(2, 4)
    o_vt = _along(W, 3) * KEYS + o_vt % 8 * R + o_vt // 8
    o_vd = (_along(V_TURNS, 6) * 8 + _along(8, 2)) * V_LANE
    # token of scales [warp, 8, 1, r] and of scores [warp, key]
    o_st = _along(W, 3) * KEYS + _along(8, 2) * R + _along(R, 0)
    o_t = tl.reshape(_along(W, 2) * KEYS + _along(8, 0) * R + _along(R, 1), (W, KEYS))

    b_max = tl.full((W, BLOCK_G), LOWEST, tl.float32)
    b_sum = tl.zeros((W, BLOCK_G), tl.float32)
    b_out = tl.zeros((W, BLOCK_D, BLOCK_G), tl.float32)
    mask = find_mask(length, OPERAND)
    row = find_row(p_table, begin, length, i_h, KV_HEADS, PAGE)
    for start in range(begin, end, TILE):
        if PAGE % TILE == 0:
            o_k, o_v, o_s = row + o_kt, row + o_vt, row + o_st
            row = find_row(p_table, start + TILE, length, i_h, KV_HEADS, PAGE)
        else:
            o_k = find_row(p_table, start + o_kt, length, i_h, KV_HEADS, PAGE)
            o_v = find_row(p_table, start + o_vt, length, i_h, KV_HEADS, PAGE)
            o_s = find_row(p_table, start + o_st, length, i_h, KV_HEADS, PAGE)
        b_k = _load(p_k, o_k, o_kd, mask, K_LANE, HEAD_DIM, BLOCK_D, WORDS, OPERAND)
        if BLOCK_D <= 128:  # early, where registers hold both
            b_v = _load(p_v, o_v, o_vd, mask, V_LANE, HEAD_DIM, BLOCK_D, WORDS, OPERAND)
        b_k = tl.reshape(b_k, (K_TURNS, R, W, 8, 4, K_LANE // RUN, RUN)).to(OPERAND)
        b_k = tl.reshape(tl.permute(b_k, (2, 1, 3, 0, 5, 4, 6)), (W, KEYS, BLOCK_D))
        if DOT:
            b_s = _dot(b_k, b_q, tl.zeros((W, KEYS, BLOCK_G), tl.float32), TURN)
        else:
            b_s = _multiply(b_k, b_q)
        if p_k_scale is not None:
            b_s *= _load_scales(p_k_scale, o_s, BLOCK_G)
        b_s = tl.where((start + o_t < length)[:, :, None], b_s, float("-inf"))
        b_new = tl.maximum(b_max, tl.max(b_s, axis=1) * scale)
        b_shrink = tl.exp2(b_max - b_new)
        b_p = tl.exp2(b_s * scale - b_new[:, None])
        b_sum = b_sum * b_shrink + tl.sum(b_p, axis=1)
        b_max = b_new
        if BLOCK_D > 128:
            b_v = _load(p_v, o_v, o_vd, mask, V_LANE, HEAD_DIM, BLOCK_D, WORDS, OPERAND)
        b_v = tl.reshape(b_v, (V_TURNS, R, 2, W, 8, 4, V_LANE))
        if p_v_scale is not None:
            if tl.float16 == OPERAND:  # too narrow for a probability times a small scale
                p_scale = p_v_scale + tl.broadcast_to(o_v[None], (1, R, 2, W, 8, 4, 1))
                b_v = b_v.to(tl.float32) * tl.load(p_scale, mask=start + o_vt < length, other=0.0)
            else:
                b_p *= _load_scales(p_v_scale, o_s, BLOCK_G)
        if RUN == 4:  # a lane's four keys in a row are two pairs of its scores
            b_p = tl.permute(tl.reshape(b_p, (W, R, 4, 2, BLOCK_G)), (0, 2, 1, 3, 4))
            b_p = tl.reshape(b_p, (W, KEYS, BLOCK_G))
            b_v = tl.permute(b_v.to(OPERAND), (3, 0, 6, 4, 5, 1, 2))
        else:
            b_v = tl.permute(b_v.to(OPERAND), (3, 0, 6, 4, 1, 5, 2))
        b_v = tl.reshape(b_v, (W, BLOCK_D, KEYS))
        b_out *= b_shrink[:, None]
        if DOT:
            b_out = _dot(b_v, b_p.to(OPERAND), b_out, TURN)
        else:
            b_out += _multiply(b_v, b_p)

    b_new = tl.max(b_max, axis=0)
    b_shrink = tl.exp2(b_max - b_new[None])
    b_max, b_sum = b_new, tl.sum(b_sum * b_shrink, axis=0)
    b_out = tl.trans(tl.sum(b_out * b_shrink[:, None], axis=0))
    if SPLITS == 1:
        store_out(p_out, b_out / b_sum[:, None], o_od, rows, HEAD_DIM)
        return
    cell = i_s * KV_HEADS * BLOCKS + i_hb
    p_partial += cell * SPLITS * PARTIAL_G * BLOCK_D
    p_sums += cell * SPLITS * PARTIAL_G * 2
    hand_in(
        p_partial, p_sums, p_counters + cell, p_out, b_out, b_max, b_sum, o_od, i_split,
        tl.cdiv(length, share), rows, HEAD_DIM, SPLITS, PARTIAL_G, CHUNK,
    )  # fmt: skip


def decode_attention(
    q: torch.Tensor, cache: LayerCache, lengths: torch.Tensor, block_table: torch.Tensor, *,
    splits: int, workspace: Workspace, arch: Arch, pdl: bool = False,
) -> torch.Tensor:  # fmt: skip
    """Attention of one query a sequence: q [S, heads, head_dim] → the same shape.

    lengths: int32 [S], cached tokens: where 0, so is the output, whatever the table says;
    block_table: int32 [S, P]; see `Backend.attend`. Neither is read on the host, so that a captured
    launch serves sequences of any length.
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

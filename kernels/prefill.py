"""Flash attention of many queries: causal, over the paged keys and values of many sequences.

The rows of a tile are queries and the query heads of one key-value head, so that grouped heads
share what is loaded. A row is `query · group + head`. One launch serves sequences of any number of
new and of cached tokens; which rows a program takes is read from a list made on the host.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from llama2gpu.kernels.arch import Arch
from llama2gpu.kernels.attention_cache import LOG2E, LOWEST, find_row, load_vectors, operand
from llama2gpu.kernels.launch import INTERPRETED, Plan, launch
from llama2gpu.kernels.splits import Tiles, cut_tiles
from llama2gpu.ops.paged import LayerCache


@triton.jit
def _convert(b_x, OPERAND: tl.constexpr, ONCE: tl.constexpr):
    """Numbers of the cache as operands; ONCE: by one warp each, which hands them on."""
    b_x = b_x.to(OPERAND)
    if ONCE:  # a sum of one: the compiler puts off what comes before it no further
        b_x = tl.sum(b_x[None], axis=0).to(OPERAND)
    return b_x


@triton.jit
def _attend(
    b_q, b_max, b_sum, b_out, p_k, p_v, p_k_scale, p_v_scale, p_table, begin, end, o_t, length, i_h,
    scale, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, OPERAND: tl.constexpr, CAUSAL: tl.constexpr,
    ONCE: tl.constexpr,
):  # fmt: skip
    """Goes on over keys `begin` to `end`; CAUSAL: rows at `o_t` [BLOCK_M] don't see all of them."""
    o_n, o_d = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    for start in range(begin, end, BLOCK_N):
        if PAGE % BLOCK_N == 0:
            o_row = find_row(p_table, start, length, i_h, KV_HEADS, PAGE) + o_n
        else:
            o_row = find_row(p_table, start + o_n, length, i_h, KV_HEADS, PAGE)
        b_k = load_vectors(p_k, o_row[:, None], o_d[None], HEAD_DIM, BLOCK_D)
        b_k = _convert(b_k, OPERAND, ONCE)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision="ieee")
        if p_k_scale is not None:
            b_s *= tl.load(p_k_scale + o_row)[None]
        if CAUSAL:
            b_s = tl.where((start + o_n)[None] <= o_t[:, None], b_s, float("-inf"))
        b_new = tl.maximum(b_max, tl.max(b_s, axis=1) * scale)
        b_shrink = tl.exp2(b_max - b_new)
        b_p = tl.exp2(b_s * scale - b_new[:, None])
        b_sum = b_sum * b_shrink + tl.sum(b_p, axis=1)
        b_max = b_new
        b_v = load_vectors(p_v, o_row[:, None], o_d[None], HEAD_DIM, BLOCK_D)
        if p_v_scale is not None:
            b_v_scale = tl.load(p_v_scale + o_row, mask=start + o_n < length, other=0.0)
            if tl.float16 == OPERAND:  # too narrow for a probability times a small scale
                b_v = b_v.to(tl.float32) * b_v_scale[:, None]
            else:
                b_p *= b_v_scale[None]
        b_out *= b_shrink[:, None]
        b_v = _convert(b_v, OPERAND, ONCE)
        b_out = tl.dot(b_p.to(OPERAND), b_v, b_out, input_precision="ieee")
    return b_max, b_sum, b_out


@triton.jit
def _prefill_kernel(
    p_q, p_k, p_v, p_k_scale, p_v_scale, p_tiles, p_starts, p_lengths, p_table, p_out,
    q_stride, width, scale, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr,
    PAGE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    OPERAND: tl.constexpr, ONCE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One tile of rows: first the keys that all of them see, then those on the diagonal."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    i_tile, i_h = tl.program_id(0), tl.program_id(1)
    i_s, first = tl.load(p_tiles + i_tile * 2), tl.load(p_tiles + i_tile * 2 + 1)
    begin, length = tl.load(p_starts + i_s), tl.load(p_lengths + i_s)
    new = tl.load(p_starts + i_s + 1) - begin
    p_table += i_s.to(tl.int64) * width

    o_m, o_d = first + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    o_t = length - new + o_m // GROUP
    o_head = i_h * GROUP + o_m % GROUP
    o_q = (begin + o_m // GROUP).to(tl.int64)
    m_q = (o_m < new * GROUP)[:, None] & (o_d < HEAD_DIM)[None]
    p_q += (o_q * q_stride + o_head * HEAD_DIM)[:, None] + o_d[None]
    b_q = tl.load(p_q, mask=m_q, other=0.0).to(OPERAND)

    b_max = tl.full((BLOCK_M,), LOWEST, tl.float32)
    b_sum = tl.zeros((BLOCK_M,), tl.float32)
    b_out = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    seen_by_all = (length - new + first // GROUP + 1) // BLOCK_N * BLOCK_N
    seen = tl.minimum(length - new + (first + BLOCK_M - 1) // GROUP + 1, length)
    b_max, b_sum, b_out = _attend(
        b_q, b_max, b_sum, b_out, p_k, p_v, p_k_scale, p_v_scale, p_table, 0, seen_by_all, o_t,
        length, i_h, scale, KV_HEADS, HEAD_DIM, PAGE, BLOCK_N, BLOCK_D, OPERAND, False, ONCE,
    )  # fmt: skip
    b_max, b_sum, b_out = _attend(
        b_q, b_max, b_sum, b_out, p_k, p_v, p_k_scale, p_v_scale, p_table, seen_by_all, seen, o_t,
        length, i_h, scale, KV_HEADS, HEAD_DIM, PAGE, BLOCK_N, BLOCK_D, OPERAND, True, ONCE,
    )  # fmt: skip
    p_out += ((o_q * KV_HEADS * GROUP + o_head) * HEAD_DIM)[:, None] + o_d[None]
    tl.store(p_out, (b_out / b_sum[:, None]).to(p_out.dtype.element_ty), mask=m_q)


def make_tiles(
    new_counts: Sequence[int], cached_counts: Sequence[int], heads: int, kv_heads: int,
    head_dim: int, dtype: torch.dtype, arch: Arch, device: torch.device, quantized: bool = False,
) -> Tiles:  # fmt: skip
    """The tiles of a batch, those with most keys first; made once for all of its layers.

    new_counts, cached_counts: as in `Batch`; a sequence may have no new token. quantized: whether
    the cache is; if that is wrong, tiles are slower than they could be.
    """
    group = heads // kv_heads
    most = max(new_counts, default=0) * group
    rows = _most_rows(head_dim, dtype, arch, quantized)
    block_m = min(triton.next_power_of_2(max(16, most)), rows)
    return cut_tiles(new_counts, cached_counts, group, block_m, device)


def _most_rows(head_dim: int, dtype: torch.dtype, arch: Arch, quantized: bool) -> int:
    """Rows of a tile: what registers hold."""
    if dtype == torch.float32:
        return 8 if _is_narrow(arch) and head_dim > 64 else 16
    if _is_narrow(arch):
        return 32 if not quantized and (head_dim <= 64 or head_dim == 128) else 16
    if not arch.is_cuda:
        return 64
    return 128 if head_dim <= 128 else 64 if _reads_shared(arch) else 32


def _reads_shared(arch: Arch) -> bool:
    """Whether the tensor cores take keys and values from shared memory, not from registers."""
    return arch.name in ("sm_90", "sm_100")


def _is_narrow(arch: Arch) -> bool:
    """Whether it is RDNA: warps of 32 lanes, whose tensor cores take their operands twice."""
    return not arch.is_cuda and arch.target.warp_size == 32


def plan_prefill(
    tiles: int, block_m: int, heads: int, kv_heads: int, head_dim: int, page: int,
    dtype: torch.dtype, arch: Arch, quantized: bool = False, pdl: bool = False,
) -> Plan:  # fmt: skip
    """A program for each tile and key-value head. dtype: of queries and output."""
    wide, once = dtype == torch.float32, quantized and not _reads_shared(arch)
    pdl = pdl and arch.pdl and not INTERPRETED
    constants = {
        "KV_HEADS": kv_heads, "GROUP": heads // kv_heads, "HEAD_DIM": head_dim, "PAGE": page,
        "BLOCK_M": block_m, "BLOCK_N": _keys_of_step(head_dim, dtype, arch, quantized),
        "BLOCK_D": max(16, triton.next_power_of_2(head_dim)), "OPERAND": operand(dtype),
        "ONCE": once and not wide, "PDL": pdl,
    }  # fmt: skip
    stages = 1 if wide or not arch.is_cuda or once else 2
    if quantized and dtype == torch.float16 and head_dim > 128:
        stages = 1  # values in float32 take the registers
    shares = _is_narrow(arch) and head_dim > 64 and (wide or quantized)
    return Plan((tiles, kv_heads), constants, 8 if shares or block_m == 128 else 4, stages, pdl)


def _keys_of_step(head_dim: int, dtype: torch.dtype, arch: Arch, quantized: bool) -> int:
    """Keys that a tile goes on by: what registers and shared memory hold."""
    if dtype == torch.float32 or _is_narrow(arch):
        return 32 if dtype != torch.float32 and quantized and head_dim > 64 else 16
    if not arch.is_cuda or _reads_shared(arch):
        short = arch.name == "sm_100" and head_dim <= 64 and not quantized
        return 128 if short else 64 if head_dim <= 128 else 32
    if arch.name == "sm_120" and quantized and 64 < head_dim <= 128:
        return 16
    return 64 if head_dim <= 64 else 32


def prefill_attention(
    q: torch.Tensor, cache: LayerCache, starts: torch.Tensor, lengths: torch.Tensor,
    block_table: torch.Tensor, tiles: Tiles, *, arch: Arch, pdl: bool = False,
) -> torch.Tensor:  # fmt: skip
    """Causal attention of the new tokens of any sequences: q [T, heads, head_dim] → the same shape.

    starts: int32 [S + 1]; lengths: int32 [S]; block_table: int32 [S, P]; see `Backend.attend`.
    """
    (_, heads, head_dim), (_, kv_heads, page, _) = q.shape, cache.k.shape
    if q.stride()[1:] != (head_dim, 1):
        q = q.contiguous()
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    plan = plan_prefill(
        len(tiles.table), tiles.block_m, heads, kv_heads, head_dim, page, q.dtype, arch,
        cache.k_scale is not None, pdl,
    )  # fmt: skip
    launch(
        _prefill_kernel, plan, p_q=q, p_k=cache.k, p_v=cache.v, p_k_scale=cache.k_scale,
        p_v_scale=cache.v_scale, p_tiles=tiles.table, p_starts=starts, p_lengths=lengths,
        p_table=block_table, p_out=out, q_stride=q.stride(0), width=block_table.stride(0),
        scale=LOG2E / math.sqrt(head_dim),
    )  # fmt: skip
    return out

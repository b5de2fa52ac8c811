"""RoPE, and writing keys and values into the paged cache, alone and in one kernel."""

import torch
import triton
import triton.language as tl

from llama2gpu.kernels.launch import Plan, launch
from llama2gpu.kernels.overlap import allow_next, wait_for_inputs
from llama2gpu.ops.paged import LayerCache

#: Numbers of one program's tile: so many tokens of one head.
TILE = 2048

#: Of a quantized cache, as `Backend.write_kv` says: the largest code and the least scale.
_CODE, _TINY = tl.constexpr(127.0), tl.constexpr(torch.finfo(torch.float32).tiny)
#: 1.5 · 2^23: float32 of this size have no fraction, so adding it rounds, half to even.
_WHOLE = tl.constexpr(12582912.0)


@triton.jit
def _load_vectors(p_x, stride, i_h, o_t, m_t, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Vectors of one head, [BLOCK_T, BLOCK_D]; heads lie side by side in rows of `stride`."""
    o_d = tl.arange(0, BLOCK_D)
    m_x = m_t[:, None] & (o_d < HEAD_DIM)[None]
    return tl.load(p_x + o_t[:, None] * stride + i_h * HEAD_DIM + o_d[None], mask=m_x, other=0.0)


@triton.jit
def _store_vectors(p_out, stride, i_h, o_t, m_t, b_x, HEAD_DIM: tl.constexpr):
    """The reverse."""
    o_d = tl.arange(0, b_x.shape[1])
    m_x = m_t[:, None] & (o_d < HEAD_DIM)[None]
    p_x = p_out + o_t[:, None] * stride + i_h * HEAD_DIM + o_d[None]
    tl.store(p_x, b_x.to(p_out.dtype.element_ty), mask=m_x)


@triton.jit
def _turn(b_x, p_cos, p_sin, p_positions, o_t, m_t, HALF: tl.constexpr):
    """Turns each pair of [BLOCK_T, BLOCK_D] by the angle of its token's position; in float32."""
    o_pair = tl.arange(0, b_x.shape[1] // 2)
    position = tl.load(p_positions + o_t, mask=m_t, other=0)
    at = position[:, None] * HALF + o_pair[None]
    m_angle = m_t[:, None] & (o_pair < HALF)[None]
    cos = tl.load(p_cos + at, mask=m_angle, other=0.0)
    sin = tl.load(p_sin + at, mask=m_angle, other=0.0)
    pairs = tl.reshape(b_x.to(tl.float32), (b_x.shape[0], b_x.shape[1] // 2, 2))
    even, odd = tl.split(pairs)
    turned = tl.join(even * cos - odd * sin, even * sin + odd * cos)
    return tl.reshape(turned, (b_x.shape[0], b_x.shape[1]))


@triton.jit
def _cache_vectors(
    p_cache, p_scale, p_slots, i_h, o_t, m_t, b_x, KV_HEADS: tl.constexpr, PAGE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """Writes vectors [BLOCK_T, BLOCK_D] of one key-value head at their tokens' slots."""
    slot = tl.load(p_slots + o_t, mask=m_t, other=0)
    o_vector = (slot // PAGE * KV_HEADS + i_h) * PAGE + slot % PAGE
    if p_scale is None:
        _store_vectors(p_cache, HEAD_DIM, 0, o_vector, m_t, b_x, HEAD_DIM)
    else:
        b_x = b_x.to(tl.float32)
        # of magnitudes as integers NaN is the largest, so that it is not lost
        peak = tl.max(b_x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=1)
        scale = tl.div_rn(peak.to(tl.float32, bitcast=True), _CODE)
        scale = tl.where(scale < _TINY, 0.0, scale)
        codes = tl.div_rn(b_x, tl.where(scale == 0, float("inf"), scale)[:, None])
        codes = ((codes + _WHOLE) - _WHOLE).to(tl.int32)
        tl.store(p_scale + o_vector, scale, mask=m_t)
        _store_vectors(p_cache, HEAD_DIM, 0, o_vector, m_t, codes, HEAD_DIM)


@triton.jit
def _rope_kernel(
    p_x, p_cos, p_sin, p_positions, p_out, tokens, stride, HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A block of tokens of one head."""
    allow_next(PDL)
    wait_for_inputs(PDL)
    o_t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    i_h, m_t = tl.program_id(1), o_t < tokens
    b_x = _load_vectors(p_x, stride, i_h, o_t, m_t, HEAD_DIM, BLOCK_D)
    b_y = _turn(b_x, p_cos, p_sin, p_positions, o_t, m_t, HEAD_DIM // 2)
    _store_vectors(p_out, HEADS * HEAD_DIM, i_h, o_t, m_t, b_y, HEAD_DIM)


@triton.jit
def _write_kv_kernel(
    p_k, p_v, p_slots, p_k_cache, p_v_cache, p_k_scale, p_v_scale, tokens, k_stride, v_stride,
    KV_HEADS: tl.constexpr, PAGE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A block of tokens of one head of keys, or behind those of values."""
    allow_next(PDL)
    wait_for_inputs(PDL)
    o_t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    i_h, m_t = tl.program_id(1), o_t < tokens
    if i_h < KV_HEADS:
        b_k = _load_vectors(p_k, k_stride, i_h, o_t, m_t, HEAD_DIM, BLOCK_D)
        _cache_vectors(p_k_cache, p_k_scale, p_slots, i_h, o_t, m_t, b_k, KV_HEADS, PAGE, HEAD_DIM)
    else:
        i_h -= KV_HEADS
        b_v = _load_vectors(p_v, v_stride, i_h, o_t, m_t, HEAD_DIM, BLOCK_D)
        _cache_vectors(p_v_cache, p_v_scale, p_slots, i_h, o_t, m_t, b_v, KV_HEADS, PAGE, HEAD_DIM)


@triton.jit
def _rope_write_kernel(
    p_y, p_cos, p_sin, p_positions, p_slots, p_q, p_k_cache, p_v_cache, p_k_scale, p_v_scale,
    tokens, stride, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, PAGE: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A block of tokens of one head of queries, keys or values, which follow one another."""
    allow_next(PDL)
    wait_for_inputs(PDL)
    o_t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    i_h, m_t = tl.program_id(1), o_t < tokens
    b_y = _load_vectors(p_y, stride, i_h, o_t, m_t, HEAD_DIM, BLOCK_D)
    if i_h < HEADS + KV_HEADS:
        turned = _turn(b_y, p_cos, p_sin, p_positions, o_t, m_t, HEAD_DIM // 2)
        turned = turned.to(b_y.dtype)  # what is cached is what `rope` would return
        if i_h < HEADS:
            _store_vectors(p_q, HEADS * HEAD_DIM, i_h, o_t, m_t, turned, HEAD_DIM)
        else:
            i_k = i_h - HEADS
            _cache_vectors(
                p_k_cache, p_k_scale, p_slots, i_k, o_t, m_t, turned, KV_HEADS, PAGE, HEAD_DIM
            )
    else:
        i_v = i_h - HEADS - KV_HEADS
        _cache_vectors(p_v_cache, p_v_scale, p_slots, i_v, o_t, m_t, b_y, KV_HEADS, PAGE, HEAD_DIM)


def plan_vectors(
    tokens: int, heads: int, head_dim: int, pdl: bool = False, **constants: int
) -> Plan:
    """A program for each block of tokens and head; its tile has at most `TILE` numbers."""
    block_d = triton.next_power_of_2(head_dim)
    block_t = min(triton.next_power_of_2(max(tokens, 1)), max(1, TILE // block_d))
    tile = {"HEAD_DIM": head_dim, "BLOCK_T": block_t, "BLOCK_D": block_d, "PDL": pdl}
    warps = min(4, max(1, block_t * block_d // 256))
    return Plan((triton.cdiv(tokens, block_t), heads), {**tile, **constants}, warps, pdl=pdl)


def plan_rope(tokens: int, heads: int, head_dim: int, pdl: bool = False) -> Plan:
    """See `plan_vectors`."""
    return plan_vectors(tokens, heads, head_dim, pdl, HEADS=heads)


def plan_write_kv(tokens: int, kv_heads: int, head_dim: int, page: int, pdl: bool = False) -> Plan:
    """See `plan_vectors`; heads of keys, then of values."""
    return plan_vectors(tokens, 2 * kv_heads, head_dim, pdl, KV_HEADS=kv_heads, PAGE=page)


def plan_rope_write(
    tokens: int, heads: int, kv_heads: int, head_dim: int, page: int, pdl: bool = False
) -> Plan:
    """See `plan_vectors`; heads of queries, of keys, then of values."""
    constants = {"HEADS": heads, "KV_HEADS": kv_heads, "PAGE": page}
    return plan_vectors(tokens, heads + 2 * kv_heads, head_dim, pdl, **constants)


def rope(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor, *,
    pdl: bool = False,
) -> torch.Tensor:  # fmt: skip
    """Turns each pair of [T, heads, head_dim] by the angle of its position → the same, joined.

    x: heads side by side in rows of any stride. cos, sin: float32 [context, head_dim / 2].
    positions: int64 [T].
    """
    x = _side_by_side(x)
    tokens, heads, head_dim = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    launch(
        _rope_kernel, plan_rope(tokens, heads, head_dim, pdl), p_x=x, p_cos=cos, p_sin=sin,
        p_positions=positions, p_out=out, tokens=tokens, stride=x.stride(0),
    )  # fmt: skip
    return out


def write_kv(
    k: torch.Tensor, v: torch.Tensor, slots: torch.Tensor, cache: LayerCache, *, pdl: bool = False
) -> None:
    """Writes keys and values [T, kv_heads, head_dim] at slots int64 [T]; see `Backend.write_kv`."""
    k, v = _side_by_side(k), _side_by_side(v)
    tokens, kv_heads, head_dim = k.shape
    plan = plan_write_kv(tokens, kv_heads, head_dim, cache.k.shape[2], pdl)
    launch(
        _write_kv_kernel, plan, p_k=k, p_v=v, p_slots=slots, **_cache_arguments(cache),
        tokens=tokens, k_stride=k.stride(0), v_stride=v.stride(0),
    )  # fmt: skip


def rope_write(
    y: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    cache: LayerCache,
    *,
    pdl: bool = False,
) -> torch.Tensor:
    """`rope` of queries and keys and `write_kv`, in one pass over the projection's rows.

    y [T, (heads + 2 kv_heads) · head_dim] → queries [T, heads, head_dim].
    """
    _, kv_heads, page, head_dim = cache.k.shape
    tokens, heads = y.shape[0], y.shape[1] // head_dim - 2 * kv_heads
    q = torch.empty((tokens, heads, head_dim), dtype=y.dtype, device=y.device)
    plan = plan_rope_write(tokens, heads, kv_heads, head_dim, page, pdl)
    launch(
        _rope_write_kernel, plan, p_y=y, p_cos=cos, p_sin=sin, p_positions=positions, p_slots=slots,
        p_q=q, **_cache_arguments(cache), tokens=tokens, stride=y.stride(0),
    )  # fmt: skip
    return q


def _cache_arguments(cache: LayerCache) -> dict[str, torch.Tensor | None]:
    """The pointers of a cache that both writing kernels take."""
    return {
        "p_k_cache": cache.k, "p_v_cache": cache.v, "p_k_scale": cache.k_scale,
        "p_v_scale": cache.v_scale,
    }  # fmt: skip


def _side_by_side(x: torch.Tensor) -> torch.Tensor:
    """`x` where its heads follow one another in a row, a copy otherwise."""
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()

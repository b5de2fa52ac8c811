"""The way into attention in one kernel: RMSNorm, projection, rotation, keys and values cached."""

import torch
import triton
import triton.language as tl

from llama2gpu.kernels.launch import launch
from llama2gpu.kernels.overlap import allow_next
from llama2gpu.kernels.packed import Packed
from llama2gpu.kernels.tiles import sums_of
from llama2gpu.kernels.tiling import Tiling, matrix_arguments, plan_matrix


@triton.jit
def _qkv_kernel(
    p_x, p_w, p_scales, p_zeros, p_norm, eps, p_cosines, p_sines, p_positions, p_slots,
    p_q, p_k_cache, p_v_cache, M, N,
    HEAD: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, PAGE: tl.constexpr,
    K: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr,
    HAS_ZEROS: tl.constexpr, HAS_NORM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK: tl.constexpr, DENORMALS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """q [M, HEADS · HEAD], turned; k, turned, and v to slots of [pages, KV_HEADS, PAGE, HEAD].

    cosines, sines: [context, HEAD / 2]; rows of W are those of q, k and v.
    """
    allow_next(PDL)
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    tokens = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    here = tl.minimum(tokens, M - 1)
    sums = sums_of(
        p_x, p_w, p_scales, p_zeros, p_norm, eps, tl.minimum(rows, N - 1), here,
        K, COLUMNS, GROUP, BITS, HAS_ZEROS, HAS_NORM, BLOCK_M, BLOCK_N, BLOCK,
        DENORMALS, PDL)  # fmt: skip

    even, odd = tl.split(tl.reshape(sums, [BLOCK_M, BLOCK_N // 2, 2]))
    first = tl.program_id(0) * BLOCK_N + 2 * tl.arange(0, BLOCK_N // 2)  # row of each pair
    turns = (first < (HEADS + KV_HEADS) * HEAD)[None, :]
    angle = tl.load(p_positions + here)[:, None] * (HEAD // 2) + (first % HEAD // 2)[None, :]
    cosine = tl.load(p_cosines + angle, mask=turns, other=1.0)
    sine = tl.load(p_sines + angle, mask=turns, other=0.0)
    turned = tl.join(even * cosine - odd * sine, even * sine + odd * cosine)
    out = tl.reshape(turned, [BLOCK_M, BLOCK_N])

    live = (tokens < M)[:, None]
    at_q = tokens.to(tl.int64)[:, None] * (HEADS * HEAD) + rows[None, :]
    is_q = rows < HEADS * HEAD
    tl.store(p_q + at_q, out.to(p_q.dtype.element_ty), mask=live & is_q[None, :])
    slot = tl.load(p_slots + here)
    head = rows // HEAD - HEADS  # of k, and past those of v
    is_k = (head >= 0) & (head < KV_HEADS)
    is_v = (head >= KV_HEADS) & (rows < N)
    place = (slot // PAGE * KV_HEADS * PAGE + slot % PAGE)[:, None]
    at = (place + (head % KV_HEADS * PAGE)[None, :]) * HEAD + (rows % HEAD)[None, :]
    kind = p_k_cache.dtype.element_ty
    tl.store(p_k_cache + at, out.to(kind), mask=live & is_k[None, :])
    tl.store(p_v_cache + at, out.to(kind), mask=live & is_v[None, :])


def qkv(
    x: torch.Tensor,
    matrix: Packed,
    tiling: Tiling,
    *,
    norm: torch.Tensor,
    eps: float,
    rope: tuple[torch.Tensor, torch.Tensor],
    positions: torch.Tensor,
    slots: torch.Tensor,
    cache: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """RMSNorm(x) through the matrix: q [M, heads, head_dim], and keys and values in the cache.

    rope: cos and sin, float32 [context, head_dim / 2]. positions, slots: int64 [M]. cache: keys and
    values [pages, kv_heads, page, head_dim] of a floating type.
    """
    x = x.contiguous()
    _, kv_heads, page, head = cache[0].shape
    heads = matrix.shape[0] // head - 2 * kv_heads
    q = torch.empty(len(x), heads, head, dtype=x.dtype, device=x.device)
    shapes = {"HEAD": head, "HEADS": heads, "KV_HEADS": kv_heads, "PAGE": page}
    plan = plan_matrix(matrix, len(x), tiling, True, **shapes)
    launch(
        _qkv_kernel, plan, p_x=x, **matrix_arguments(matrix), p_norm=norm, eps=eps,
        p_cosines=rope[0], p_sines=rope[1], p_positions=positions, p_slots=slots, p_q=q,
        p_k_cache=cache[0], p_v_cache=cache[1],
        M=len(x), N=matrix.shape[0],
    )  # fmt: skip
    return q

"""What each program of a decode launch leaves for the last, and how that one adds it up."""

import triton
import triton.language as tl

from llama2gpu.kernels.attention_cache import LOWEST


@triton.jit
def store_out(p_out, b_out, o_d, rows, HEAD_DIM: tl.constexpr):
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
def hand_in(
    p_partial, p_sums, p_counter, p_out, b_out, b_max, b_sum, o_d, i_split, used, rows,
    HEAD_DIM: tl.constexpr, SPLITS: tl.constexpr, PARTIAL_G: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Leaves the first `rows` rows of a split's outputs, maxima and sums.

    The last of the `used` splits adds all of them up and stores the output.
    """
    BLOCK_D: tl.constexpr = b_out.shape[1]
    o_r, o_n = tl.arange(0, b_out.shape[0]), tl.arange(0, BLOCK_D)
    o_part = i_split * PARTIAL_G + o_r
    tl.store(p_partial + o_part[:, None] * BLOCK_D + o_n[None], b_out, mask=(o_r < rows)[:, None])
    tl.store(p_sums + o_part * 2, b_max, mask=o_r < rows)
    tl.store(p_sums + o_part * 2 + 1, b_sum, mask=o_r < rows)
    tl.debug_barrier()  # all threads have stored before one of them says so
    if tl.atomic_add(p_counter, 1, sem="acq_rel") == used - 1:
        b_all = _add_up(p_partial, p_sums, used, rows, SPLITS, PARTIAL_G, BLOCK_D, CHUNK)
        store_out(p_out, b_all, o_d, rows, HEAD_DIM)
        tl.store(p_counter, 0)

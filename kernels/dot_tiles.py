"""A few tokens times a block of rows, on tensor cores."""

import triton
import triton.language as tl

from llama2gpu.kernels.overlap import wait_for_inputs


@triton.jit
def tile_of(p_w, rows, columns, start, K: tl.constexpr, MASKED: tl.constexpr):
    """Words or columns `start` and up of each row, [BLOCK_N, columns]."""
    at = p_w + rows[:, None].to(tl.int64) * K + (start + columns)[None, :]
    if MASKED:
        return tl.load(at, mask=(columns < K - start)[None, :], other=0)
    return tl.load(at)


@triton.jit
def dot_sums_packed(
    p_x, p_w, p_scales, p_zeros, p_norm, rows, tokens,
    K: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr,
    HAS_ZEROS: tl.constexpr, HAS_NORM: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Σ (value − zero) · scale · x over all columns, float32 [BLOCK_M, BLOCK_N]; and Σx² [BLOCK_M].

    A tile inside one group is multiplied as whole numbers, which are exact, and scaled afterwards;
    else each weight is scaled, and rounded to the activations' type, before.
    """
    IN_WORD: tl.constexpr = 32 // BITS
    WORDS: tl.constexpr = COLUMNS // IN_WORD
    GROUPS: tl.constexpr = K // GROUP
    LATER: tl.constexpr = GROUP % (BLOCK_W * IN_WORD) == 0 or GROUPS == 1
    TAIL: tl.constexpr = WORDS % BLOCK_W != 0
    kind = p_x.dtype.element_ty
    words = tl.arange(0, BLOCK_W)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    squares = tl.zeros([BLOCK_M], tl.float32)
    wait_for_inputs(PDL)
    for start in range(0, WORDS, BLOCK_W):
        tile = tile_of(p_w, rows, words, start, WORDS, TAIL)
        columns = (start + words) // 4 * (4 * IN_WORD) + words % 4
        if LATER:
            at_group = rows * GROUPS + (start * IN_WORD // GROUP if GROUPS > 1 else 0)
            scale = tl.load(p_scales + at_group).to(tl.float32)[:, None]
            zero = (
                tl.load(p_zeros + at_group)[:, None].to(tl.float32) if HAS_ZEROS else 1 << BITS - 1
            )
        else:
            group = columns // GROUP
            at_group = rows[:, None] * GROUPS + group[None, :]
            inside = (group < GROUPS)[None, :]
            scale = tl.load(p_scales + at_group, mask=inside, other=0.0).to(tl.float32)
            zero = 1 << BITS - 1
            if HAS_ZEROS:
                zero = tl.load(p_zeros + at_group, mask=inside, other=0).to(tl.float32)
        part = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for i in tl.static_range(IN_WORD):
            at = columns + 4 * i
            inside_x = (at < K)[None, :]
            value = tl.load(p_x + tokens[:, None] * K + at[None, :], mask=inside_x, other=0.0)
            value = value.to(tl.float32)
            if HAS_NORM:
                squares += tl.sum(value * value, axis=1)
                value *= tl.load(p_norm + at, mask=at < K, other=0.0)[None, :]
            # 0x4B000000 is 2^23, whose last bits count ones
            held = ((tile >> BITS * i) & (1 << BITS) - 1) | 0x4B000000
            weight = held.to(tl.float32, bitcast=True) - (8388608.0 + zero)
            if not LATER:
                weight *= scale
            part = tl.dot(value.to(kind), tl.trans(weight.to(kind)), part, input_precision="ieee")
        total += part * tl.trans(scale) if LATER else part
    return total, squares


@triton.jit
def dot_sums_dense(
    p_x, p_w, p_norm, rows, tokens, K: tl.constexpr, HAS_NORM: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The same for a dense matrix."""
    TAIL: tl.constexpr = K % BLOCK_K != 0
    kind = p_x.dtype.element_ty
    columns = tl.arange(0, BLOCK_K)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    squares = tl.zeros([BLOCK_M], tl.float32)
    wait_for_inputs(PDL)
    for start in range(0, K, BLOCK_K):
        at = start + columns
        tile = tile_of(p_w, rows, columns, start, K, TAIL)
        value = tl.load(p_x + tokens[:, None] * K + at[None, :], mask=(at < K)[None, :], other=0.0)
        if HAS_NORM:
            wide = value.to(tl.float32)
            squares += tl.sum(wide * wide, axis=1)
            value = (wide * tl.load(p_norm + at, mask=at < K, other=0.0)[None, :]).to(kind)
        total = tl.dot(value, tl.trans(tile.to(kind)), total, input_precision="ieee")
    return total, squares

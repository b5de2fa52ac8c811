"""One token times a block of rows, in the registers of each lane.

Packed weights are read without shift or conversion: bits `BITS · i` of a word, left in place, are
as a float32 the value times 2^(BITS · i − 149), a denormal number or just above, exact below 2^24.
"""

import triton
import triton.language as tl

from llama2gpu.kernels.overlap import wait_for_inputs


@triton.jit
def place_of(i: tl.constexpr, BITS: tl.constexpr):
    """Where value i of a word lies once it is below bit 24: as value 0, 1, …"""
    held: tl.constexpr = 24 // BITS
    return i if i < held else i - 8 // BITS


@triton.jit
def in_place(words, i: tl.constexpr, BITS: tl.constexpr, DENORMALS: tl.constexpr):
    """Value i of each word as a float32 that `factor_of` puts right."""
    mask: tl.constexpr = (1 << BITS) - 1
    if DENORMALS:
        part = words if BITS * (i + 1) <= 24 else words >> 8
        return (part & (mask << BITS * place_of(i, BITS))).to(tl.float32, bitcast=True)
    return ((words >> BITS * i) & mask).to(tl.float32)


@triton.jit
def factor_of(i: tl.constexpr, BITS: tl.constexpr, DENORMALS: tl.constexpr):
    """Makes each value its own times 2^-65, which is left for the scale: |x| < 2^43 is in range."""
    return 2.0 ** (84 - BITS * place_of(i, BITS)) if DENORMALS else 2.0**-65


@triton.jit
def products(words, x, i: tl.constexpr, BITS: tl.constexpr, DENORMALS: tl.constexpr):
    """Value i of each word times x times 2^-65: [BLOCK_N, UNITS] and [UNITS]."""
    return in_place(words, i, BITS, DENORMALS) * (x * factor_of(i, BITS, DENORMALS))[None, :]


@triton.jit
def four_words(x, UNITS: tl.constexpr):
    """[…, words] as the four words of each unit, [UNITS] or [BLOCK_N, UNITS] each."""
    if len(x.shape) == 1:
        pairs = tl.reshape(x, [UNITS, 2, 2])
    else:
        pairs = tl.reshape(x, [x.shape[0], UNITS, 2, 2])
    even, odd = tl.split(pairs)
    zero, two = tl.split(even)
    one, three = tl.split(odd)
    return zero, one, two, three


@triton.jit
def masked_load(at, mask, MASKED: tl.constexpr):
    """What lies there as float32, 0 where the mask is false."""
    if MASKED:
        return tl.load(at, mask=mask, other=0).to(tl.float32)
    return tl.load(at).to(tl.float32)


@triton.jit
def vector_sums_packed(
    p_x, p_w, p_scales, p_zeros, p_norm, rows,
    K: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr,
    HAS_ZEROS: tl.constexpr, HAS_NORM: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr, DENORMALS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Σ (value − zero) · scale · x over all columns, float32 [BLOCK_N]; and Σx²."""
    IN_WORD: tl.constexpr = 32 // BITS
    WORDS: tl.constexpr = COLUMNS // IN_WORD
    UNITS: tl.constexpr = BLOCK_W // 4
    TAIL: tl.constexpr = WORDS % BLOCK_W != 0
    X_TAIL: tl.constexpr = TAIL or K != COLUMNS
    GROUPS: tl.constexpr = K // GROUP
    words = tl.arange(0, BLOCK_W)
    columns = words // 4 * (4 * IN_WORD) + words % 4  # of each word's first value
    first = tl.arange(0, UNITS) * (4 * IN_WORD)  # column of each unit
    at_w = p_w + rows[:, None].to(tl.int64) * WORDS + words[None, :]
    at_group = rows[:, None] * GROUPS
    total = tl.zeros([BLOCK_N, UNITS], tl.float32)
    squares = tl.zeros([BLOCK_W], tl.float32)
    tile = tl.load(at_w, mask=(words < WORDS)[None, :], other=0)  # before the wait: weights stay
    wait_for_inputs(PDL)
    for start in range(0, WORDS, BLOCK_W):
        column = start * IN_WORD
        sums = tl.zeros([BLOCK_N, UNITS], tl.float32)
        x_sums = tl.zeros([UNITS], tl.float32)
        w_0, w_1, w_2, w_3 = four_words(tile, UNITS)
        for i in tl.static_range(IN_WORD):
            inside = columns + 4 * i < K - column
            value = masked_load(p_x + column + columns + 4 * i, inside, X_TAIL)
            scaled = value
            if HAS_NORM:
                squares += value * value
                scaled *= masked_load(p_norm + column + columns + 4 * i, inside, X_TAIL)
            x_0, x_1, x_2, x_3 = four_words(scaled, UNITS)
            x_sums += x_0 + x_1 + (x_2 + x_3)
            sums += (
                in_place(w_0, i, BITS, DENORMALS) * (x_0 * factor_of(i, BITS, DENORMALS))[None, :]
            )
            sums += (
                in_place(w_1, i, BITS, DENORMALS) * (x_1 * factor_of(i, BITS, DENORMALS))[None, :]
            )
            sums += (
                in_place(w_2, i, BITS, DENORMALS) * (x_2 * factor_of(i, BITS, DENORMALS))[None, :]
            )
            sums += (
                in_place(w_3, i, BITS, DENORMALS) * (x_3 * factor_of(i, BITS, DENORMALS))[None, :]
            )
        group = (column + first) // GROUP if GROUPS > 1 else tl.zeros_like(first)
        inside_group = (group < GROUPS)[None, :]
        scale = masked_load(p_scales + at_group + group[None, :], inside_group, TAIL)
        zero = 1 << BITS - 1
        if HAS_ZEROS:
            zero = masked_load(p_zeros + at_group + group[None, :], inside_group, TAIL)
        total += scale * (sums * 2.0**65 - zero * x_sums[None, :])
        if WORDS > BLOCK_W:
            at_w += BLOCK_W
            left = words < WORDS - BLOCK_W - start
            tile = tl.load(at_w, mask=left[None, :], other=0)
    return tl.sum(total, axis=1), tl.sum(squares, axis=0)


@triton.jit
def vector_sums_dense(
    p_x, p_w, p_norm, rows, K: tl.constexpr, HAS_NORM: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Σ w · x over all columns, float32 [BLOCK_N]; and Σx²."""
    TAIL: tl.constexpr = K % BLOCK_K != 0
    columns = tl.arange(0, BLOCK_K)
    at_w = p_w + rows[:, None].to(tl.int64) * K + columns[None, :]
    total = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    squares = tl.zeros([BLOCK_K], tl.float32)
    tile = tl.load(at_w, mask=(columns < K)[None, :], other=0.0)
    wait_for_inputs(PDL)
    for start in range(0, K, BLOCK_K):
        value = masked_load(p_x + start + columns, columns < K - start, TAIL)
        scaled = value
        if HAS_NORM:
            squares += value * value
            scaled *= masked_load(p_norm + start + columns, columns < K - start, TAIL)
        total += tile.to(tl.float32) * scaled[None, :]
        if K > BLOCK_K:
            at_w += BLOCK_K
            tile = tl.load(at_w, mask=(columns < K - BLOCK_K - start)[None, :], other=0.0)
    return tl.sum(total, axis=1), tl.sum(squares, axis=0)

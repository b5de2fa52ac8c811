"""What the attention kernels share: vectors of the paged cache, found and loaded, and constants."""

from typing import Any

import torch
import triton
import triton.language as tl

from llama2gpu.kernels.launch import INTERPRETED

LOG2E = 1.4426950408889634
#: Below every score, and finite, so that minus itself it is 0.
LOWEST = tl.constexpr(-1e30)


def operand(dtype: torch.dtype) -> Any:
    """The type of the operands of `tl.dot`; the interpreter is wrong in bfloat16."""
    if dtype == torch.bfloat16:
        return tl.float32 if INTERPRETED else tl.bfloat16
    return {torch.float16: tl.float16, torch.float32: tl.float32}[dtype]


@triton.jit
def find_row(p_table, o_t, length, i_h, KV_HEADS: tl.constexpr, PAGE: tl.constexpr):
    """Which vectors of the cache tokens `o_t` are, int64; past the end, others of the last page."""
    o_page = tl.minimum(o_t // PAGE, (length - 1) // PAGE)
    page = tl.load(p_table + o_page).to(tl.int64)
    return (page * KV_HEADS + i_h) * PAGE + o_t % PAGE


@triton.jit
def load_vectors(p_x, o_row, o_d, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Numbers `o_d` of vectors of the cache."""
    if BLOCK_D == HEAD_DIM:
        return tl.load(p_x + o_row * HEAD_DIM + o_d)
    return tl.load(p_x + o_row * HEAD_DIM + o_d, mask=o_d < HEAD_DIM, other=0)


@triton.jit
def find_mask(length, OPERAND: tl.constexpr):
    """What `unpack` masks words with; `length`: no negative number.

    A number that the compiler doesn't know: a known one it would move to a register at each use.
    """
    return (0x00FF00FF if tl.float16 == OPERAND else 0x007F007F) ^ (length >> 31)


@triton.jit
def unpack(b_w, mask, OPERAND: tl.constexpr):
    """The bytes of words [..., n] as numbers [..., n, 2, 2]: first the even ones of a word.

    Bytes become digits of two floats in a word: of 1024 + 128 + byte in float16, of 128 + its lower
    bits in bfloat16, less 128 or, with the sign bit as its exponent's last, 256. All is exact.
    """
    b_w = tl.join(b_w, b_w >> 8)
    if tl.float16 == OPERAND:
        return _halves((b_w & mask) ^ 0x64806480, OPERAND) - 1152.0
    else:
        b_low = (b_w & mask) | 0x43004300
        b_sign = (b_w & (mask + 0x00010001)) | 0x43004300
        return _halves(b_low, OPERAND) - _halves(b_sign, OPERAND)


@triton.jit
def swap(o_d):
    """Which number of a vector `unpack` puts where: the last two bits change places."""
    return o_d // 4 * 4 + o_d % 2 * 2 + o_d // 2 % 2


@triton.jit
def _halves(b_w, OPERAND: tl.constexpr):
    """Both halves of words [...] as numbers [..., 2]."""
    b_x = tl.join(b_w.to(tl.int16), (b_w >> 16).to(tl.int16))
    return b_x.to(OPERAND, bitcast=True)

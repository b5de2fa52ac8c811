"""The one random generator of all backends: Philox 4x32-10, counted, not stepped.

Word i of draw c under a seed is a pure function of (seed, c, i), so a token depends neither on
the batch it was drawn in nor on the backend that drew it.
Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).
"""

from typing import TypeVar

import numpy as np
import torch

Array = TypeVar("Array", torch.Tensor, "np.ndarray[tuple[int, ...], np.dtype[np.int64]]")

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF


def philox(
    counter: tuple[Array, Array, Array, Array], key: tuple[Array, Array], rounds: int = 10
) -> tuple[Array, Array, Array, Array]:
    """Four 32-bit words for each 128-bit counter and 64-bit key.

    All arrays are int64 and hold 32-bit words; they broadcast. Products wrap at 64 bits and
    keep their bit pattern, so the arithmetic shift is mended by the mask.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def uniform_words(seed: Array, draw: Array, index: Array) -> Array:
    """The 32-bit word of each vocabulary `index` in each `draw` under each `seed` (int64).

    The counter is (index, draw, 0, 0) and the key is the seed's low and high word; the first of
    the four words is taken, as `tl.philox` hands it out.
    """
    zero = index * 0
    draw_words = (draw & _MASK, (draw >> 32) & _MASK)
    key = (seed & _MASK, (seed >> 32) & _MASK)
    return philox((index, zero + draw_words[0], zero + draw_words[1], zero), key)[0]

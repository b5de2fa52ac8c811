"""One layer's paged key-value cache, as every op and kernel sees it."""

from typing import NamedTuple

from torch import Tensor


class LayerCache(NamedTuple):
    """Keys and values of one layer: [pages, kv_heads, page, head_dim] each.

    In the activations' type, or int8 with a scale for each token and key-value head, float32
    [pages, kv_heads, page]: code · scale is the number. (In float16 a scale would lose its digits
    where a vector is small, as values of a sequence's first token are, to save 2 bytes of 132.)
    Slots that no token was written to hold any finite values.
    """

    k: Tensor
    v: Tensor
    k_scale: Tensor | None = None
    v_scale: Tensor | None = None

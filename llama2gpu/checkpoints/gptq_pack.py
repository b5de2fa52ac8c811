"""GPTQ's words, AWQ's and ours: values and zero points into each layout, never through floats.

`qweight` is int32 `[K·bits/32, N]`, a column's values one after the other from the low bits up;
`qzeros` is int32 `[groups, N·bits/32]`, a row's zero points likewise. Little-endian.
"""

import torch

#: Which of its eight values each nibble of AWQ's words holds, from the low bits up.
_AWQ = (0, 2, 4, 6, 1, 3, 5, 7)
#: The nibbles 0 and 4 of a word.
_PAIR = 0x000F000F


def unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """`qweight` to its values, uint8 `[N, K]`."""
    values = words.view(torch.uint8).view(*words.shape, 4)  # [word, N, byte]
    if bits == 4:
        values = torch.stack((values & 15, values >> 4), -1).flatten(2)
    return values.transpose(0, 1).flatten(1)


def pack_int8(values: torch.Tensor) -> torch.Tensor:
    """The reverse for 8 bits: values, uint8 `[N, K]`, to `qweight`."""
    rows, columns = values.shape
    words = values.reshape(rows, columns // 4, 4).transpose(0, 1).contiguous()
    return words.view(torch.int32).flatten(1)


def to_units(words: torch.Tensor) -> torch.Tensor:
    """`qweight` of 4 bits to the packing of `quant.pack`, int32 `[N, K/8]`; K a multiple of 32.

    Nibble n of word s of a unit is column 8s + n; there it is nibble 2s + n//4 of word n % 4. So
    byte s of word w is made of the nibbles w and w + 4 of word s.
    """
    stored = words.T.contiguous().view(words.shape[1], -1, 4)  # [N, unit, s]
    packed = torch.empty_like(stored)  # [N, unit, w]
    for w in range(4):
        pair = stored >> 4 * w & _PAIR
        packed[:, :, w] = (pair | pair >> 12).to(torch.uint8).view(torch.int32)[:, :, 0]
    return packed.flatten(1)


def from_units(packed: torch.Tensor) -> torch.Tensor:
    """The reverse: int32 `[N, K/8]` of `quant.pack` to `qweight` of 4 bits."""
    there = packed.contiguous().view(torch.uint8).view(packed.shape[0], -1, 4, 4)  # [N, unit, w, s]
    words = torch.zeros(there.shape[:3], dtype=torch.int32)  # [N, unit, s]
    for w in range(4):
        pair = there[:, :, w].to(torch.int32)
        words |= ((pair | pair << 12) & _PAIR) << 4 * w
    return words.flatten(1).T.contiguous()


def unpack_zeros(words: torch.Tensor, bits: int) -> torch.Tensor:
    """`qzeros` to what it stores, uint8 `[groups, N]`."""
    stored = words.view(torch.uint8)
    if bits == 4:
        stored = torch.stack((stored & 15, stored >> 4), -1).flatten(1)
    return stored


def pack_zeros(stored: torch.Tensor, bits: int) -> torch.Tensor:
    """The reverse: uint8 `[groups, N]` to `qzeros`."""
    if bits == 4:
        stored = stored[:, ::2] | stored[:, 1::2] << 4
    return stored.clone(memory_format=torch.contiguous_format).view(torch.int32)


def awq_in_order(words: torch.Tensor) -> torch.Tensor:
    """AWQ's words with their values in order, from the low bits up."""
    ordered = torch.zeros_like(words)
    for nibble, place in enumerate(_AWQ):
        ordered |= (words >> 4 * nibble & 15) << 4 * place
    return ordered


def from_awq(words: torch.Tensor) -> torch.Tensor:
    """AWQ's `qweight`, int32 `[K, N/8]`, to GPTQ's of 4 bits, int32 `[K/8, N]`."""
    values = unpack_zeros(awq_in_order(words.contiguous()), 4)  # [K, N]
    pairs = values[::2] | values[1::2] << 4
    return pairs.view(len(pairs) // 4, 4, -1).transpose(1, 2).contiguous().view(torch.int32)[..., 0]

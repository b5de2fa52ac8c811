"""The canonical packing of 4-bit values, which serves row kernels, tiles and tensor cores alike.

Row-major int32 `[N, K / 8]`. A unit is 32 consecutive columns of one row: 4 words, 16 bytes. In
unit u, nibble i (bits 4i to 4i + 3) of word w holds column 32u + 4i + w. So one 16-byte load is one
unit, inside one group for every group of at least 32, and nibble i of its words are 4 neighbours.
"""

import torch

#: Columns of a unit; the columns of an int4 matrix are a multiple of it.
UNIT = 32


def pack_int4(values: torch.Tensor) -> torch.Tensor:
    """Values 0 to 15, any integer type `[N, K]`, to int32 `[N, K / 8]`; K is a multiple of 32."""
    rows, columns = values.shape
    nibbles = values.to(torch.int32).view(rows, columns // UNIT, 8, 4)  # [N, unit, nibble, word]
    words = nibbles[:, :, 0].clone()
    for i in range(1, 8):
        words |= nibbles[:, :, i] << 4 * i
    return words.view(rows, columns // 8)


def unpack_int4(packed: torch.Tensor) -> torch.Tensor:
    """The reverse: int32 `[N, K / 8]` to uint8 `[N, K]`."""
    rows, words = packed.shape
    units = packed.view(rows, words // 4, 1, 4)
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=packed.device).view(8, 1)
    return (units >> shifts & 15).to(torch.uint8).view(rows, words * 8)

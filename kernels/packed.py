"""A matrix as the Triton kernels read it: words of 32 bits, 16 bytes of one row to a load."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from llama2gpu.quant import Dense, Int4, Int8, Weight

#: Bytes of a unit, which is one load of one lane.
UNIT_BYTES = 16


@dataclass(frozen=True)
class Packed:
    """A matrix `[N, K]` on a device.

    bits: of a value; 4 and 8 are packed, 16 and 32 dense. data: dense `[N, K]`, or int32
    `[N, columns · bits / 32]`. In a unit of 4 words, word w holds in bits `bits · i` and up column
    4i + w of the unit's own; int8 is stored + 128. columns: K, and of int8 a multiple of 16, past K
    zeros. scales: `[N, K / group]`; zeros: uint8 `[N, K / group]`, or None for the middle value.
    """

    data: torch.Tensor
    shape: tuple[int, int]
    bits: int
    columns: int
    group: int
    scales: torch.Tensor | None = None
    zeros: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that one product reads."""
        parts = (self.data, self.scales, self.zeros)
        return sum(part.nbytes for part in parts if part is not None)


def pack(weight: Weight) -> Packed:
    """The matrix of a weight whose columns have their own order (`Int4.order` is the caller's)."""
    rows, columns = weight.shape
    if isinstance(weight, Dense):
        data = _aligned(weight.data)
        return Packed(data, (rows, columns), 8 * data.itemsize, columns, columns)
    if isinstance(weight, Int8):
        words = _pack_int8(weight.data)
        wide = 4 * words.shape[1]
        return Packed(words, (rows, columns), 8, wide, weight.group, weight.scales)
    data, scales, zeros = _aligned(weight.packed), weight.scales, weight.zeros
    return Packed(data, (rows, columns), 4, columns, weight.group, scales, zeros)


def _aligned(data: torch.Tensor) -> torch.Tensor:
    """The same, contiguous from a multiple of a unit's bytes on."""
    data = data.contiguous()
    return data if data.is_meta or data.data_ptr() % UNIT_BYTES == 0 else data.clone()


def takes(weight: Weight) -> bool:
    """Whether the packed kernels have it: a unit lies in one group, or the group is the row."""
    if isinstance(weight, Dense):
        return True
    unit = 32 if isinstance(weight, Int4) else 16
    return weight.group % unit == 0 or weight.group == weight.shape[1]


def _pack_int8(data: torch.Tensor) -> torch.Tensor:
    """int8 `[N, K]` to int32 `[N, ⌈K / 16⌉ · 4]`: byte i of word w of a unit is column 4i + w."""
    rows, columns = data.shape
    values = F.pad(data, (0, -columns % UNIT_BYTES)).view(torch.uint8) ^ 128
    units = values.view(rows, -1, 4, 4)  # [N, unit, byte, word]
    return units.transpose(2, 3).contiguous().view(rows, -1).view(torch.int32)


def unpacked(packed: Packed) -> torch.Tensor:
    """The reverse of both packings, as `value − zero` times the scale, float32 `[N, K]`."""
    rows, columns = packed.shape
    if packed.bits > 8:
        return packed.data.float()
    assert packed.scales is not None
    shifts = torch.arange(0, 32, packed.bits, dtype=torch.int32, device=packed.data.device)
    units = packed.data.view(rows, -1, 1, 4) >> shifts[:, None] & (1 << packed.bits) - 1
    values = units.view(rows, -1)[:, :columns].float().view(rows, -1, packed.group)
    middle = 1 << packed.bits - 1
    zeros = middle if packed.zeros is None else packed.zeros.float()[:, :, None]
    return ((values - zeros) * packed.scales.float()[:, :, None]).view(rows, columns)

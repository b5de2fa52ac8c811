"""Quantized matrices for PyTorch's own kernels, on CUDA, MPS, and a CPU without a compiler.

All of them take bfloat16 activations; CUDA's int4 kernel is tinygemm. Scales become bfloat16.
"""

import torch
from torch import Tensor

from llama2gpu.backends.matrix import Matrix, TiledMatrix, gate
from llama2gpu.quant import Int4, Int8
from llama2gpu.quant.pack import unpack_int4

#: Most tokens for which the int8 kernel beats dequantizing (bench/NOTES.md).
FEW = 16

#: Tiles of 16 columns that the int4 packing of a GPU joins.
_INNER_TILES = 8


class Int8Matrix(TiledMatrix):
    """One scale for each row: few tokens go to `_weight_int8pack_mm`."""

    def __init__(self, weight: Int8) -> None:
        super().__init__(weight)
        self.data, self.scales = weight.data.contiguous(), weight.scales[:, 0].bfloat16()

    @staticmethod
    def takes(weight: Int8) -> bool:
        """Whether the kernel has that form."""
        return weight.scales.shape[1] == 1 and weight.shape[1] % 16 == 0

    def linear(self, x: Tensor) -> Tensor:
        """See `Matrix.linear`."""
        if len(x) > FEW or x.dtype != torch.bfloat16:
            return super().linear(x)
        return torch._weight_int8pack_mm(x, self.data, self.scales)


class Int4Matrix(Matrix):
    """Packed once; the packing can't be read back, so the kernel serves any number of tokens."""

    def __init__(self, weight: Int4, kind: str) -> None:
        self.group, self.cpu = weight.group, kind == "cpu"
        q = unpack_int4(weight.packed)
        zeros = 8.0 if weight.zeros is None else weight.zeros.float()
        scales = weight.scales.float()
        pairs = torch.stack((scales, (8 - zeros) * scales), dim=-1)  # w = (q − 8) · s + offset
        self.pairs = pairs.transpose(0, 1).contiguous().bfloat16()  # [K / group, N, 2]
        if self.cpu:
            self.data = torch._convert_weight_to_int4pack_for_cpu(q.int(), 1)
        else:
            both = q[:, 0::2] << 4 | q[:, 1::2]
            self.data = torch._convert_weight_to_int4pack(both, _INNER_TILES)
        self.nbytes = self.data.nbytes + self.pairs.nbytes

    @staticmethod
    def takes(weight: Int4, kind: str) -> bool:
        """Whether the kernel has that form."""
        rows, columns = weight.shape
        whole = rows % 16 == 0 if kind == "cpu" else rows % 8 == columns % (16 * _INNER_TILES) == 0
        return whole and weight.group in (32, 64, 128, 256) and weight.order is None

    def linear(self, x: Tensor) -> Tensor:
        """See `Matrix.linear`; activations of another type are rounded to bfloat16."""
        multiply = torch._weight_int4pack_mm_for_cpu if self.cpu else torch._weight_int4pack_mm
        return multiply(x.bfloat16(), self.data, self.group, self.pairs).to(x.dtype)

    def gated(self, x: Tensor) -> Tensor:
        """See `Matrix.gated`."""
        return gate(self.linear(x))

"""Quantized matrices for PyTorch's own kernels, on CUDA, MPS, and a CPU without a compiler.

CUDA's int4 kernel is tinygemm. Where a kernel would round the activations, tiles serve instead.
"""

import torch
from torch import Tensor

from llama2gpu.backends.matrix import Matrix, TiledMatrix, gate, tiled
from llama2gpu.quant import Int4, Int8
from llama2gpu.quant.pack import unpack_int4

#: Most tokens for which the int8 kernel beats dequantizing (bench/NOTES.md).
FEW = 16

#: Tiles of 16 columns that the int4 packing of a GPU joins.
_INNER_TILES = 8


class Int8Matrix(TiledMatrix):
    """One scale for each row: few tokens go to `_weight_int8pack_mm`."""

    def __init__(self, weight: Int8, kind: str) -> None:
        super().__init__(weight)
        self.data, self.scales = weight.data.contiguous(), weight.scales[:, 0]
        self.kind = kind

    @staticmethod
    def takes(weight: Int8, kind: str) -> bool:
        """Whether the kernel has that form."""
        rows, columns = weight.shape
        if kind == "mps":
            fits = rows % 32 == columns % 32 == 0
        elif kind == "cuda":  # since PyTorch 2.9
            fits = torch._C._dispatch_has_kernel_for_dispatch_key(
                "aten::_weight_int8pack_mm", "CUDA"
            )
        else:
            fits = columns % 16 == 0
        return fits and weight.scales.shape[1] == 1

    def linear(self, x: Tensor) -> Tensor:
        """See `Matrix.linear`; the kernels want scales of the type of x."""
        if len(x) > FEW or (self.kind == "cpu" and x.dtype != torch.bfloat16):
            return super().linear(x)
        return torch._weight_int8pack_mm(x.contiguous(), self.data, self.scales.to(x.dtype))


class Int4Matrix(Matrix):
    """Packed at its first product, for the type of those activations, which later ones share.

    The packing can't be read back, so the kernel serves any number of tokens.
    """

    def __init__(self, weight: Int4, kind: str) -> None:
        super().__init__(*vars(weight).values())
        self.group, self.kind = weight.group, kind
        self.weight: Int4 | None = weight
        self.data = self.pairs = torch.empty(0)

    @staticmethod
    def takes(weight: Int4, kind: str) -> bool:
        """Whether the kernel has that form."""
        rows, columns = weight.shape
        whole = rows % 16 == 0 and (kind == "cpu" or columns % (16 * _INNER_TILES) == 0)
        return (
            whole
            and weight.group in (32, 64, 128, 256)
            and (kind != "cuda" or _has_tinygemm(weight.packed.device))
        )

    def linear(self, x: Tensor) -> Tensor:
        """See `Matrix.linear`."""
        if self.weight is not None:
            if self.kind != "mps" and x.dtype != torch.bfloat16:
                return tiled(x, self.weight)
            self._pack(self.weight, x.dtype)
        cpu = self.kind == "cpu"
        multiply = torch._weight_int4pack_mm_for_cpu if cpu else torch._weight_int4pack_mm
        return multiply(x.contiguous(), self.data, self.group, self.pairs)

    def gated(self, x: Tensor) -> Tensor:
        """See `Matrix.gated`."""
        return gate(self.linear(x))

    def _pack(self, weight: Int4, dtype: torch.dtype) -> None:
        zeros = 8.0 if weight.zeros is None else weight.zeros.float()
        scales = weight.scales.to(dtype).float()  # rounded first: the offsets are to fit them
        pairs = torch.stack((scales, (8 - zeros) * scales), dim=-1)  # w = (q − 8) · s + offset
        self.pairs = pairs.transpose(0, 1).to(dtype).contiguous()  # [K / group, N, 2]
        q = unpack_int4(weight.packed)
        if self.kind == "cpu":
            self.data = torch._convert_weight_to_int4pack_for_cpu(q.int(), 1)
        else:
            both = q[:, 0::2] << 4 | q[:, 1::2]
            self.data = torch._convert_weight_to_int4pack(both, _INNER_TILES)
        self.parts, self.weight = (self.data, self.pairs), None


def _has_tinygemm(device: torch.device) -> bool:
    """It is made for compute capability 8.0 and up; ROCm has it on few cards."""
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)

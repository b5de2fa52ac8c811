"""What backends with kernels of their own share: matrices packed for them, and who takes what.

Few tokens go to a kernel, norm and epilogue with them; many to PyTorch's matrix product, with the
matrix unpacked for it.
"""

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from llama2gpu.backends.base import Backend, Batch, LayerCache, Norm, Prepared, Rope
from llama2gpu.kernels.packed import Packed, pack, takes
from llama2gpu.quant import Dense, Int4, Weight


class PackedMatrix:
    """A matrix as the kernels read it; `order` says which input each of its columns takes."""

    def __init__(self, weight: Weight) -> None:
        self.order = weight.order if isinstance(weight, Int4) else None
        self.packed: Packed = pack(weight)

    @property
    def nbytes(self) -> int:
        """Bytes that one product reads."""
        return self.packed.nbytes

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The tensors that a product reads."""
        p = self.packed
        return tuple(part for part in (p.data, p.scales, p.zeros) if part is not None)


class PackedBackend(Backend):
    """Routes the ops that read a matrix; a subclass brings their kernels."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._counters: dict[int, Tensor] = {}

    def prepare(self, weight: Weight, op: str) -> Weight | PackedMatrix:
        """Packed words; an embedding as it is. A form that no kernel has becomes dense."""
        weight = weight.to(self.device)
        if op == "embed":
            return weight
        if not takes(weight):
            weight = Dense(weight.dequantize(torch.float32))
        return PackedMatrix(weight)

    @abstractmethod
    def few(self, x: Tensor, matrix: Packed) -> bool:
        """Whether the matrix kernels take so many tokens [T, K]."""

    @abstractmethod
    def few_linear(
        self, x: Tensor, matrix: Packed, norm: Norm | None, residual: Tensor | None,
        kind: torch.dtype,
    ) -> Tensor:  # fmt: skip
        """W · norm(x) + residual in one kernel, in type `kind`."""

    @abstractmethod
    def few_gate_up(self, x: Tensor, matrix: Packed, norm: Norm) -> Tensor:
        """See `Backend.gate_up`, in one kernel."""

    @abstractmethod
    def few_qkv(
        self, x: Tensor, matrix: Packed, norm: Norm, rope: Rope, batch: Batch, cache: LayerCache
    ) -> Tensor:
        """See `Backend.qkv`, in one kernel; the cache is not quantized."""

    @abstractmethod
    def rope_write(self, y: Tensor, rope: Rope, batch: Batch, cache: LayerCache) -> Tensor:
        """What `Backend.qkv` does with the projection's rows [T, (heads + 2 kv_heads) · head]."""

    @abstractmethod
    def unpacked(self, matrix: Packed, dtype: torch.dtype) -> Tensor:
        """The matrix [N, K] in `dtype`."""

    def linear(self, x: Tensor, weight: Prepared) -> Tensor:
        """See `Backend.linear`."""
        return self._product(x, weight)

    def linear_with(
        self, x: Tensor, weight: Prepared, norm: Norm | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """See `Backend.linear_with`; one kernel for few tokens."""
        if self.borrowed:
            return super().linear_with(x, weight, norm, residual)
        return self._product(x, weight, norm, residual)

    def qkv(
        self, x: Tensor, norm: Norm, weight: Prepared, rope: Rope, batch: Batch, cache: LayerCache
    ) -> Tensor:
        """See `Backend.qkv`; one kernel for few tokens and a cache that is not quantized."""
        matrix: PackedMatrix = weight
        if self.borrowed:
            return super().qkv(x, norm, weight, rope, batch, cache)
        if self.fuses(x, matrix) and cache.k_scale is None:
            return self.few_qkv(x, matrix.packed, norm, rope, batch, cache)
        return self.rope_write(self._product(x, matrix, norm), rope, batch, cache)

    def gate_up(self, x: Tensor, norm: Norm, weight: Prepared) -> Tensor:
        """See `Backend.gate_up`; one kernel for few tokens."""
        matrix: PackedMatrix = weight
        if self.borrowed or not self.fuses(x, matrix):
            return self.silu_mul(self.linear_with(x, weight, norm))
        return self.few_gate_up(x, matrix.packed, norm)

    def logits(self, x: Tensor, norm: Norm, weight: Prepared) -> Tensor:
        """See `Backend.logits`; one kernel for few tokens."""
        if self.borrowed:
            return super().logits(x, norm, weight)
        return self._product(x, weight, norm, kind=torch.promote_types(x.dtype, torch.float32))

    def fuses(self, x: Tensor, matrix: PackedMatrix) -> bool:
        """Whether one kernel takes norm, product and epilogue."""
        return matrix.order is None and self.few(x, matrix.packed)

    def zeros(self, count: int) -> Tensor:
        """At least so many counters, int32, which every launch leaves at zero."""
        size = max(1 << 10, 1 << max(count - 1, 0).bit_length())
        if size not in self._counters:
            self._counters[size] = torch.zeros(size, dtype=torch.int32, device=self.device)
        return self._counters[size]

    def _product(
        self,
        x: Tensor,
        matrix: PackedMatrix,
        norm: Norm | None = None,
        residual: Tensor | None = None,
        kind: torch.dtype | None = None,
    ) -> Tensor:
        if norm is not None and not self.fuses(x, matrix):
            x, norm = self.rms_norm(x, norm), None
        if matrix.order is not None:
            x = x.index_select(1, matrix.order)
        if self.few(x, matrix.packed):
            rest = None if residual is None else residual.contiguous()
            return self.few_linear(x, matrix.packed, norm, rest, kind or x.dtype)
        y = F.linear(x, self.unpacked(matrix.packed, x.dtype))
        return y.to(kind or x.dtype) if residual is None else y + residual

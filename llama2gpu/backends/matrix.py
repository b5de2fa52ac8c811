"""A matrix as the torch backend keeps it: what multiplies few tokens, and what many."""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from llama2gpu.backends.base import Norm
from llama2gpu.backends.cpu_row import cpu_linear
from llama2gpu.quant import Int4, Int8, Weight

#: Weights of a tile that is dequantized at once: 8 MiB of bfloat16.
TILE = 1 << 22


class Matrix(ABC):
    """A matrix [N, K] on a device; `gated` is for one whose rows are gates and ups.

    parts: the tensors that a product reads. compiled: whether few tokens go to a kernel of ours.
    """

    compiled = False

    def __init__(self, *parts: Tensor | None) -> None:
        self.parts = tuple(part for part in parts if part is not None)

    @property
    def nbytes(self) -> int:
        """Bytes that one product reads."""
        return sum(part.nbytes for part in self.parts)

    @abstractmethod
    def linear(self, x: Tensor) -> Tensor:
        """X · Wᵀ: [T, K] → [T, N]."""

    @abstractmethod
    def gated(self, x: Tensor) -> Tensor:
        """silu(gate) · up of a paired matrix: [T, K] → [T, N / 2]."""

    def fused(
        self, x: Tensor, norm: Norm | None, residual: Tensor | None, gated: bool
    ) -> Tensor | None:
        """RMSNorm, product, and residual or gating in one kernel; None where there is none."""
        return None


class DenseMatrix(Matrix):
    """Rows as they are; a paired one has all gates before all ups, which multiplies fastest."""

    def __init__(self, data: Tensor, kind: str) -> None:
        super().__init__(data)
        self.data = data
        self.product = cpu_linear if kind == "cpu" else F.linear

    def linear(self, x: Tensor) -> Tensor:
        """See `Matrix.linear`."""
        return self.product(x, self.data)

    def gated(self, x: Tensor) -> Tensor:
        """See `Matrix.gated`."""
        return gate(self.linear(x))


class TiledMatrix(Matrix):
    """A quantized matrix, dequantized tile by tile for each product: any device, any type."""

    def __init__(self, weight: Int8 | Int4) -> None:
        super().__init__(*vars(weight).values())
        self.weight = weight

    def linear(self, x: Tensor) -> Tensor:
        """See `Matrix.linear`."""
        return tiled(x, self.weight)

    def gated(self, x: Tensor) -> Tensor:
        """See `Matrix.gated`."""
        return gate(self.linear(x))


class OrderedMatrix(Matrix):
    """A matrix whose columns are stored in another order, in which it takes its inputs."""

    def __init__(self, inner: Matrix, order: Tensor) -> None:
        super().__init__()
        self.inner, self.order, self.compiled = inner, order, inner.compiled

    @property
    def nbytes(self) -> int:
        """See `Matrix.nbytes`."""
        return self.inner.nbytes + self.order.nbytes

    def linear(self, x: Tensor) -> Tensor:
        """See `Matrix.linear`."""
        return self.inner.linear(x.index_select(1, self.order))

    def gated(self, x: Tensor) -> Tensor:
        """See `Matrix.gated`."""
        return self.inner.gated(x.index_select(1, self.order))


def gate(y: Tensor) -> Tensor:
    """silu(gate) · up of all gates beside all ups: [T, N] → [T, N / 2]."""
    gates, ups = y.chunk(2, dim=1)
    return F.silu(gates) * ups


def tiled(x: Tensor, weight: Weight) -> Tensor:
    """X · Wᵀ with tiles of W dequantized to the type of x."""
    rows, columns = weight.shape
    step = max(TILE // columns, 1)
    out = x.new_empty(len(x), rows)
    for start in range(0, rows, step):
        tile = weight.rows(slice(start, start + step)).dequantize(x.dtype)
        out[:, start : start + step] = F.linear(x, tile)
    return out


def gates_first(weight: Weight) -> Weight:
    """Rows gate 0, up 0, gate 1, … as all gates, then all ups."""
    rows = torch.arange(weight.shape[0]).view(-1, 2).T.flatten()
    return weight.rows(rows)

"""What backends with GPU kernels of their own share: packed matrices, and which way an op takes.

Few tokens go to a matrix kernel, norm and epilogue with them; many to PyTorch's matrix product,
with the matrix unpacked for it. One query a sequence is split over programs, many are cut in tiles,
and a whole prompt alone goes to PyTorch's attention.
"""

import os
from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from llama2gpu.backends.base import Backend, Batch, LayerCache, Looping, Norm, Prepared, Probe, Rope
from llama2gpu.backends.graphs import CudaCapture
from llama2gpu.backends.torch import device_name
from llama2gpu.backends.torch_attention import sequence
from llama2gpu.kernels.packed import Packed, pack, takes
from llama2gpu.kernels.splits import Tiles, Workspace, make_workspace
from llama2gpu.quant import Dense, Int4, Weight
from llama2gpu.quant.weight import int4

#: Environment variable that switches CUDA graphs off, where it is set.
NO_GRAPH = "LLAMA2GPU_NO_GRAPH"


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


class KernelBackend(Backend):
    """Routes the ops that read a matrix or the cache; a subclass brings their kernels.

    multiprocessors: of the device, or what it is taken to have where it has none.
    """

    def __init__(self, device: torch.device, multiprocessors: int) -> None:
        super().__init__(device)
        self.multiprocessors = multiprocessors
        if device.type == "cuda":
            self.multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
        self._counters: dict[int, Tensor] = {}
        self._workspaces: dict[tuple[int, ...], Workspace] = {}
        self._tiles: tuple[Batch, torch.dtype, Tiles] | None = None

    @classmethod
    def try_kernel(cls, device: torch.device, running: str) -> Probe:
        """Runs a small kernel on the device; `running`: what is told where that works."""
        try:
            backend, x = cls.on(device), torch.arange(32.0, device=device)[None]
            # small whole numbers, whose sums are exact; packed ones are denormal numbers on the way
            q = (torch.arange(8 * 32) * 7 % 16).view(8, 32)
            weight = int4(q.float(), torch.ones(8, 1), None)
            with backend.current():
                found = backend.linear(x, backend.prepare(weight, "linear")).cpu()
            wanted = torch.arange(32.0) @ (q - 8.0).T
        except Exception as error:  # of many kinds: the compiler's and the driver's
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            return Probe(False, f"a kernel does not run on {device_name(device)}: {reason}")
        if not torch.equal(found[0], wanted):
            return Probe(False, f"a kernel gives wrong results on {device_name(device)}")
        return Probe(True, running)

    @classmethod
    @abstractmethod
    def on(cls, device: torch.device) -> "KernelBackend":
        """The backend on a device, as it is by default."""

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

    @abstractmethod
    def splits(self, reach: int, sequences: int, kv_heads: int) -> int:
        """Shares of sequences of up to `reach` cached tokens."""

    @abstractmethod
    def attend_one(
        self, q: Tensor, batch: Batch, cache: LayerCache, splits: int, workspace: Workspace
    ) -> Tensor:
        """See `Backend.attend`, for one query a sequence."""

    @abstractmethod
    def cut(self, q: Tensor, batch: Batch, cache: LayerCache) -> Tiles:
        """The tiles of a batch, for all of its layers."""

    @abstractmethod
    def attend_many(self, q: Tensor, batch: Batch, cache: LayerCache, tiles: Tiles) -> Tensor:
        """See `Backend.attend`."""

    def attend(self, q: Tensor, batch: Batch, cache: LayerCache) -> Tensor:
        """See `Backend.attend`."""
        if not len(q):
            return q
        if all(new == 1 for new in batch.new_counts):
            return self._attend_one(q, batch, cache)
        whole = batch.new_counts == batch.cached_counts and len(batch.new_counts) == 1
        if whole and q.device.type == "cuda" and cache.k_scale is None:
            return sequence(q, batch.cached_counts[0], batch.block_table[0].long(), cache)
        last = self._tiles
        if last is None or last[0] is not batch or last[1] != q.dtype:
            last = self._tiles = (batch, q.dtype, self.cut(q, batch, cache))
        return self.attend_many(q, batch, cache, last[2])

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
        if self.fuses(x, matrix) and cache.k.dtype == x.dtype:
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

    def looping(self) -> Looping:
        """See `Backend.looping`: CUDA graphs, where all ops are its own."""
        if self.borrowed:
            return super().looping()
        if self.device.type != "cuda":
            return Looping(buckets=True)
        return Looping(1, True, None if os.environ.get(NO_GRAPH) else CudaCapture)

    def fuses(self, x: Tensor, matrix: PackedMatrix) -> bool:
        """Whether one kernel takes norm, product and epilogue."""
        return matrix.order is None and self.few(x, matrix.packed)

    def zeros(self, count: int) -> Tensor:
        """At least so many counters, int32, which every launch leaves at zero."""
        size = max(1 << 10, 1 << max(count - 1, 0).bit_length())
        if size not in self._counters:
            self._counters[size] = torch.zeros(size, dtype=torch.int32, device=self.device)
        return self._counters[size]

    def _attend_one(self, q: Tensor, batch: Batch, cache: LayerCache) -> Tensor:
        sequences, heads, head_dim = q.shape
        kv_heads = cache.k.shape[1]
        splits = self.splits(max(batch.cached_counts), sequences, kv_heads)
        key = (sequences, heads, kv_heads, head_dim, splits)
        if key not in self._workspaces:
            self._workspaces[key] = make_workspace(*key, q.device)
        return self.attend_one(q, batch, cache, splits, self._workspaces[key])

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

"""The ops as Triton kernels: NVIDIA from compute capability 8.0, AMD, or the interpreter on a CPU.

What a kernel is not made for goes to PyTorch, by rules that `routes` tells: many tokens times a
matrix to its matrix product, a whole prompt on a GPU to its fused attention.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from llama2gpu.backends.base import Backend, Batch, LayerCache, Norm, Prepared, Probe, Rope
from llama2gpu.backends.graphs import GraphedStep
from llama2gpu.backends.torch import device_name
from llama2gpu.backends.torch_attention import sequence
from llama2gpu.kernels import attention as decoding
from llama2gpu.kernels import embed, gate_up, linear, prefill, qkv, sample, swiglu
from llama2gpu.kernels import norm as norms
from llama2gpu.kernels import rope as turning
from llama2gpu.kernels.arch import Arch, arch_of
from llama2gpu.kernels.dequantize import dequantize
from llama2gpu.kernels.launch import INTERPRETED
from llama2gpu.kernels.packed import Packed, pack, takes
from llama2gpu.kernels.tiling import FEW, Tiling, tiling_for
from llama2gpu.ops.sample import SampleParams
from llama2gpu.quant import Dense, Int4, Weight

#: Environment variables that switch off, where set: graphs, launches before their predecessor has
#: ended, and denormal numbers in products with packed weights.
NO_GRAPH, NO_PDL = "LLAMA2GPU_NO_GRAPH", "LLAMA2GPU_NO_PDL"
NO_DENORMALS = "LLAMA2GPU_NO_DENORMALS"

#: Multiprocessors that splits are chosen for where no device says how many it has.
MULTIPROCESSORS = 108


class TritonMatrix:
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


class TritonBackend(Backend):
    """Triton's kernels on a GPU.

    arch: the one to plan for, that of the device where not given. denormals: whether packed weights
    are multiplied where they lie in their word, as denormal numbers.
    """

    name: ClassVar[str] = "triton"

    def __init__(
        self, device: torch.device, arch: Arch | None = None, denormals: bool | None = None
    ) -> None:
        super().__init__(device)
        self.denormals = not os.environ.get(NO_DENORMALS) if denormals is None else denormals
        self.arch = arch or arch_of(device)
        if os.environ.get(NO_PDL):
            self.arch = replace(self.arch, early=False)
        self.multiprocessors = MULTIPROCESSORS
        if device.type == "cuda":
            self.multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
        self._workspaces: dict[tuple[int, ...], decoding.Workspace] = {}
        self._tiles: tuple[Batch, torch.dtype, prefill.Tiles] | None = None

    @classmethod
    def probe(cls, device: torch.device) -> Probe:
        """Runs a small kernel on the device."""
        if device.type == "cpu" and not INTERPRETED:
            return Probe(
                False,
                "no GPU is at hand: use --backend torch; or set TRITON_INTERPRET=1, which runs the "
                "kernels on the CPU, thousands of times slower, to check them",
            )
        if device.type not in ("cpu", "cuda"):
            return Probe(False, f"Triton has no {device.type} device: use --backend torch")
        if INTERPRETED and device.type != "cpu":
            return Probe(False, "TRITON_INTERPRET is set: unset it, or add --device cpu")
        try:
            x = torch.ones(2, 8, device=device)
            found = cls(device).rms_norm(x, Norm(torch.full((8,), 3.0, device=device), 0.0))
            ok = bool((found == 3.0).all())
        except Exception as error:  # of many kinds: the compiler's and the driver's
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            return Probe(False, f"a kernel does not run on {device_name(device)}: {reason}")
        place = "in its interpreter, slowly" if INTERPRETED else f"on {device_name(device)}"
        return Probe(ok, f"Triton {_version()} {place}")

    def routes(self) -> dict[str, str]:
        """What serves each op, at few and at many tokens, and why."""
        few = (
            f"1 token: sums in registers; 2–{FEW}: tensor cores; more: dequantized, then PyTorch's"
        )
        attention = "one query a sequence: split over programs; else flash attention"
        return {
            **dict.fromkeys(("linear", "qkv", "project_add", "gate_up", "logits"), few),
            **dict.fromkeys(("attend", "attention"), attention),
        }

    def prepare(self, weight: Weight, op: str) -> Weight | TritonMatrix:
        """Packed words; an embedding as it is. A form that no kernel has becomes dense."""
        weight = weight.to(self.device)
        if op == "embed":
            return weight
        if not takes(weight):
            weight = Dense(weight.dequantize(torch.float32))
        return TritonMatrix(weight)

    def capture(
        self, step: Any, held: Callable[[], tuple[Tensor, ...]], reach: int, page: int
    ) -> Any:
        """See `Backend.capture`: CUDA graphs, where all ops are its own."""
        if self.device.type != "cuda" or self.borrowed or os.environ.get(NO_GRAPH):
            return step
        return GraphedStep(step, held, reach, page)

    def embed(self, tokens: Tensor, weight: Prepared) -> Tensor:
        """See `Backend.embed`."""
        table: Weight = weight
        kind = table.data.dtype if isinstance(table, Dense) else torch.float32
        return embed.embed(tokens, table, kind)

    def rms_norm(self, x: Tensor, norm: Norm) -> Tensor:
        """See `Backend.rms_norm`."""
        return norms.rms_norm(x, norm.weight, norm.eps)

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

    def rope(self, x: Tensor, rope: Rope, positions: Tensor) -> Tensor:
        """See `Backend.rope`."""
        return turning.rope(x, rope.cos, rope.sin, positions)

    def silu_mul(self, x: Tensor) -> Tensor:
        """See `Backend.silu_mul`."""
        return swiglu.silu_mul(x)

    def write_kv(self, k: Tensor, v: Tensor, batch: Batch, cache: LayerCache) -> None:
        """See `Backend.write_kv`."""
        turning.write_kv(k, v, batch.slots, cache)

    def attend(self, q: Tensor, batch: Batch, cache: LayerCache) -> Tensor:
        """See `Backend.attend`."""
        if not len(q):
            return q
        if all(new == 1 for new in batch.new_counts):
            return self._decode(q, batch, cache)
        whole = batch.new_counts == batch.cached_counts and len(batch.new_counts) == 1
        if whole and q.device.type == "cuda" and cache.k_scale is None:
            return sequence(q, batch.cached_counts[0], batch.block_table[0].long(), cache)
        tiles = self._tiles_of(q, batch, cache)
        place = (batch.starts, batch.lengths, batch.block_table)
        return prefill.prefill_attention(q, cache, *place, tiles, arch=self.arch, pdl=self.arch.pdl)

    def qkv(
        self, x: Tensor, norm: Norm, weight: Prepared, rope: Rope, batch: Batch, cache: LayerCache
    ) -> Tensor:
        """See `Backend.qkv`; one kernel for few tokens and a cache that is not quantized."""
        matrix: TritonMatrix = weight
        if self.borrowed:
            return super().qkv(x, norm, weight, rope, batch, cache)
        if not self._fuses(x, matrix) or cache.k_scale is not None:
            y = self._product(x, matrix, norm)
            return turning.rope_write(y, rope.cos, rope.sin, batch.positions, batch.slots, cache)
        return qkv.qkv(
            x, matrix.packed, self._tiling(x, matrix), norm=norm.weight,
            eps=norm.eps, rope=(rope.cos, rope.sin), positions=batch.positions,
            slots=batch.slots, cache=(cache.k, cache.v),
        )  # fmt: skip

    def gate_up(self, x: Tensor, norm: Norm, weight: Prepared) -> Tensor:
        """See `Backend.gate_up`; one kernel for few tokens."""
        matrix: TritonMatrix = weight
        if self.borrowed or not self._fuses(x, matrix):
            return self.silu_mul(self.linear_with(x, weight, norm))
        tiling = self._tiling(x, matrix)
        return gate_up.gate_up(x, matrix.packed, tiling, norm=norm.weight, eps=norm.eps)

    def logits(self, x: Tensor, norm: Norm, weight: Prepared) -> Tensor:
        """See `Backend.logits`."""
        wide = torch.promote_types(x.dtype, torch.float32)
        if self.borrowed:
            return super().logits(x, norm, weight)
        return self._product(x, weight, norm, out_dtype=wide)

    def sample(self, logits: Tensor, params: SampleParams) -> tuple[Tensor, Tensor]:
        """See `Backend.sample`."""
        return sample.sample(logits, params)

    def _fuses(self, x: Tensor, matrix: TritonMatrix) -> bool:
        """Whether a matrix kernel takes so many tokens, norm and epilogue with them."""
        return len(x) <= FEW and matrix.order is None

    def _tiling(self, x: Tensor, matrix: TritonMatrix) -> Tiling:
        return tiling_for(self.arch, matrix.packed, len(x), self.denormals)

    def _product(
        self,
        x: Tensor,
        matrix: TritonMatrix,
        norm: Norm | None = None,
        residual: Tensor | None = None,
        out_dtype: torch.dtype | None = None,
    ) -> Tensor:
        kind = out_dtype or x.dtype
        if norm is not None and not self._fuses(x, matrix):
            x, norm = self.rms_norm(x, norm), None
        if matrix.order is not None:
            x = x.index_select(1, matrix.order)
        if len(x) > FEW:
            y = F.linear(x, dequantize(matrix.packed, x.dtype))
            return y.to(kind) if residual is None else y + residual
        weights, eps = (None, 0.0) if norm is None else (norm.weight, norm.eps)
        tiling = self._tiling(x, matrix)
        rest = None if residual is None else residual.contiguous()
        return linear.linear(
            x, matrix.packed, tiling, norm=weights, eps=eps, residual=rest, out_dtype=kind
        )

    def _decode(self, q: Tensor, batch: Batch, cache: LayerCache) -> Tensor:
        sequences, heads, head_dim = q.shape
        kv_heads = cache.k.shape[1]
        reach = max(batch.cached_counts, default=1)
        splits = decoding.splits_for(reach, sequences, kv_heads, self.multiprocessors)
        key = (sequences, heads, kv_heads, head_dim, splits)
        if key not in self._workspaces:
            self._workspaces[key] = decoding.make_workspace(*key, q.device)
        return decoding.decode_attention(
            q, cache, batch.lengths, batch.block_table, splits=splits,
            workspace=self._workspaces[key], arch=self.arch, pdl=self.arch.pdl,
        )  # fmt: skip

    def _tiles_of(self, q: Tensor, batch: Batch, cache: LayerCache) -> prefill.Tiles:
        """Made once a batch, for all layers."""
        last = self._tiles
        if last is None or last[0] is not batch or last[1] != q.dtype:
            _, heads, head_dim = q.shape
            tiles = prefill.make_tiles(
                batch.new_counts, batch.cached_counts, heads, cache.k.shape[1], head_dim, q.dtype,
                self.arch, q.device, quantized=cache.k_scale is not None,
            )  # fmt: skip
            last = self._tiles = (batch, q.dtype, tiles)
        return last[2]


def _version() -> Any:
    from importlib.metadata import version

    return version("triton")

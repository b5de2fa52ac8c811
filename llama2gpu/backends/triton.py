"""The ops as Triton kernels: NVIDIA from compute capability 8.0, AMD, or the interpreter on a CPU.

What a kernel is not made for goes to PyTorch, by rules that `routes` tells: many tokens times a
matrix to its matrix product, a whole prompt on a GPU to its fused attention.
"""

import os
from dataclasses import replace
from importlib.metadata import version
from typing import ClassVar

import torch
from torch import Tensor

from llama2gpu.backends.base import (
    CACHE_OPS,
    MATRIX_OPS,
    Batch,
    LayerCache,
    Norm,
    Prepared,
    Probe,
    Rope,
    Route,
)
from llama2gpu.backends.kernel_backend import KernelBackend, PackedMatrix
from llama2gpu.backends.torch import device_name
from llama2gpu.kernels import advance, embed, gate_up, head, linear, prefill, qkv, sample, swiglu
from llama2gpu.kernels import norm as norms
from llama2gpu.kernels import rope as turning
from llama2gpu.kernels.arch import Arch, arch_of
from llama2gpu.kernels.attention import decode_attention
from llama2gpu.kernels.dequantize import dequantize
from llama2gpu.kernels.launch import INTERPRETED
from llama2gpu.kernels.packed import Packed
from llama2gpu.kernels.splits import Tiles, Workspace, splits_for
from llama2gpu.kernels.tiling import FEW, UNTUNED, Tiling, tiling_for
from llama2gpu.kernels.tuned import Tuned, load_tuned
from llama2gpu.ops.sample import Drawn, SampleParams
from llama2gpu.quant import Dense, Weight

#: Environment variables that switch off, where set: launches before their predecessor has ended,
#: and denormal numbers in products with packed weights.
NO_PDL, NO_DENORMALS = "LLAMA2GPU_NO_PDL", "LLAMA2GPU_NO_DENORMALS"
#: Switches off, where set, what `llama2gpu kernels tune` found for the device.
NO_TUNED = "LLAMA2GPU_NO_TUNED"

#: Multiprocessors that splits are chosen for where no device says how many it has.
MULTIPROCESSORS = 108


class TritonBackend(KernelBackend):
    """Triton's kernels on a GPU.

    arch: the one to plan for, that of the device where not given. denormals: whether packed weights
    are multiplied where they lie in their word, as denormal numbers. tuned: tiles that win over the
    shipped ones; of a device whose arch is not given, those that its file has.
    """

    name: ClassVar[str] = "triton"

    def __init__(
        self,
        device: torch.device,
        arch: Arch | None = None,
        denormals: bool | None = None,
        tuned: Tuned | None = None,
    ) -> None:
        super().__init__(device, MULTIPROCESSORS)
        self.denormals = not os.environ.get(NO_DENORMALS) if denormals is None else denormals
        self.arch = arch or arch_of(device)
        if os.environ.get(NO_PDL):
            self.arch = replace(self.arch, early=False)
        unasked = device.type == "cuda" and tuned is None and arch is None
        if unasked and not os.environ.get(NO_TUNED):
            tuned = load_tuned(torch.cuda.get_device_name(device), self.arch)
        self.tuned = tuned or Tuned()

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
        place = "in its interpreter, slowly" if INTERPRETED else f"on {device_name(device)}"
        return cls.try_kernel(device, f"Triton {version('triton')} {place}")

    @classmethod
    def on(cls, device: torch.device) -> "TritonBackend":
        """See `KernelBackend.on`."""
        return cls(device)

    def routes(self) -> dict[str, Route]:
        """See `Backend.routes`."""
        matrix = Route(
            f"one kernel, with norm and epilogue: 1 token in registers, 2–{FEW} on tensor cores",
            f"above {FEW} tokens: dequantized, then PyTorch's matrix product",
            "few tokens wait for memory, which the kernels read packed; many for arithmetic; "
            f"tiles: {self.tuned.origin}",
        )
        attention = Route(
            "flash-decoding: a sequence's tokens split over programs",
            "flash attention, all sequences in one launch; one whole prompt: PyTorch's SDPA",
            "one query a sequence, or several; SDPA takes neither pages nor an int8 cache",
        )
        sample = Route(
            "in the head's kernel; truncated or penalized: kernels behind it",
            "the same, of the last token",
            "noise alone needs no other logit",
        )
        return {
            **dict.fromkeys(MATRIX_OPS, matrix),
            **dict.fromkeys(CACHE_OPS, attention),
            "sample": sample,
        }

    @property
    def label(self) -> str:
        """See `Backend.label`; also whether it is slow on purpose."""
        return f"{super().label} (interpreted: slow)" if INTERPRETED else super().label

    def activation_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """See `Backend.activation_dtype`; the interpreter's bfloat16 is wrong, so it has none."""
        return torch.float32 if INTERPRETED and dtype == torch.bfloat16 else dtype

    def advance(
        self, drawn: Tensor, tokens: Tensor, batch: Batch, params: SampleParams, page: int
    ) -> None:
        """See `Backend.advance`."""
        advance.advance(
            drawn, tokens, batch.positions, batch.lengths, params.draw, batch.slots,
            batch.block_table, page, params.generated, pdl=self.arch.pdl,
        )  # fmt: skip

    def embed(self, tokens: Tensor, weight: Prepared) -> Tensor:
        """See `Backend.embed`."""
        table: Weight = weight
        kind = table.data.dtype if isinstance(table, Dense) else torch.float32
        return embed.embed(tokens, table, kind, pdl=self.arch.pdl)

    def rms_norm(self, x: Tensor, norm: Norm) -> Tensor:
        """See `Backend.rms_norm`."""
        return norms.rms_norm(x, norm.weight, norm.eps, pdl=self.arch.pdl)

    def rope(self, x: Tensor, rope: Rope, positions: Tensor) -> Tensor:
        """See `Backend.rope`."""
        return turning.rope(x, rope.cos, rope.sin, positions, pdl=self.arch.pdl)

    def silu_mul(self, x: Tensor) -> Tensor:
        """See `Backend.silu_mul`."""
        return swiglu.silu_mul(x, pdl=self.arch.pdl)

    def write_kv(self, k: Tensor, v: Tensor, batch: Batch, cache: LayerCache) -> None:
        """See `Backend.write_kv`."""
        turning.write_kv(k, v, batch.slots, cache, pdl=self.arch.pdl)

    def splits(self, reach: int, sequences: int, kv_heads: int) -> int:
        """See `KernelBackend.splits`."""
        return splits_for(reach, sequences, kv_heads, self.multiprocessors)

    def attend_one(
        self, q: Tensor, batch: Batch, cache: LayerCache, splits: int, workspace: Workspace
    ) -> Tensor:
        """See `KernelBackend.attend_one`."""
        return decode_attention(
            q, cache, batch.lengths, batch.block_table, splits=splits, workspace=workspace,
            arch=self.arch, pdl=self.arch.pdl,
        )  # fmt: skip

    def cut(self, q: Tensor, batch: Batch, cache: LayerCache) -> Tiles:
        """See `KernelBackend.cut`."""
        _, heads, head_dim = q.shape
        return prefill.make_tiles(
            batch.new_counts, batch.cached_counts, heads, cache.k.shape[1], head_dim, q.dtype,
            self.arch, q.device, quantized=cache.k_scale is not None,
        )  # fmt: skip

    def attend_many(self, q: Tensor, batch: Batch, cache: LayerCache, tiles: Tiles) -> Tensor:
        """See `KernelBackend.attend_many`."""
        place = (batch.starts, batch.lengths, batch.block_table)
        return prefill.prefill_attention(q, cache, *place, tiles, arch=self.arch, pdl=self.arch.pdl)

    def few(self, x: Tensor, matrix: Packed) -> bool:
        """See `KernelBackend.few`."""
        return len(x) <= FEW

    def few_linear(
        self, x: Tensor, matrix: Packed, norm: Norm | None, residual: Tensor | None,
        kind: torch.dtype,
    ) -> Tensor:  # fmt: skip
        """See `KernelBackend.few_linear`."""
        weights, eps = (None, 0.0) if norm is None else (norm.weight, norm.eps)
        tiling = self._tiling(x, matrix)
        return linear.linear(
            x, matrix, tiling, norm=weights, eps=eps, residual=residual, out_dtype=kind
        )

    def few_gate_up(self, x: Tensor, matrix: Packed, norm: Norm) -> Tensor:
        """See `KernelBackend.few_gate_up`."""
        tiling = self._tiling(x, matrix)
        return gate_up.gate_up(x, matrix, tiling, norm=norm.weight, eps=norm.eps)

    def few_qkv(
        self, x: Tensor, matrix: Packed, norm: Norm, rope: Rope, batch: Batch, cache: LayerCache
    ) -> Tensor:
        """See `KernelBackend.few_qkv`."""
        return qkv.qkv(
            x, matrix, self._tiling(x, matrix), norm=norm.weight, eps=norm.eps,
            rope=(rope.cos, rope.sin), positions=batch.positions, slots=batch.slots,
            cache=(cache.k, cache.v),
        )  # fmt: skip

    def rope_write(self, y: Tensor, rope: Rope, batch: Batch, cache: LayerCache) -> Tensor:
        """See `KernelBackend.rope_write`."""
        places = (batch.positions, batch.slots)
        return turning.rope_write(y, rope.cos, rope.sin, *places, cache, pdl=self.arch.pdl)

    def unpacked(self, matrix: Packed, dtype: torch.dtype) -> Tensor:
        """See `KernelBackend.unpacked`."""
        return dequantize(matrix, dtype, pdl=self.arch.pdl)

    def sample(self, logits: Tensor, params: SampleParams) -> tuple[Tensor, Tensor]:
        """See `Backend.sample`."""
        counters = self.zeros(len(logits))
        return sample.sample(logits, params, counters, pdl=self.arch.pdl)

    def draw(self, x: Tensor, norm: Norm, weight: Prepared, params: SampleParams) -> Drawn:
        """See `Backend.draw`; one kernel for few tokens, if they are not truncated or penalized."""
        matrix: PackedMatrix = weight
        fuses = self.fuses(x, matrix) and head.takes(params) and x.dtype != torch.float64
        if self.borrowed or not fuses:
            return super().draw(x, norm, weight, params)
        plan = head.plan_head(matrix.packed, len(x), self._tiling(x, matrix.packed), params.greedy)
        drawn = head.head(
            x, matrix.packed, plan, norm=norm.weight, eps=norm.eps, params=params,
            counters=self.zeros(head.count_counters(plan)),
        )  # fmt: skip
        return Drawn(*drawn)

    def _tiling(self, x: Tensor, matrix: Packed) -> Tiling:
        # tuned with activations of 16 bits: wider ones need more shared memory
        tuned = self.tuned.tiles if x.itemsize == 2 else UNTUNED
        return tiling_for(self.arch, matrix, len(x), self.denormals, tuned)

"""The ops in PyTorch: CPU, CUDA (and ROCm) and Apple's MPS, in float32, float16 and bfloat16.

Real numbers alone and no op that MPS lacks. What depends on the batch alone is computed at its
first layer and kept for the others: on a CPU each small op of a decode step runs cold, since the
weights have just streamed through every cache.
"""

from dataclasses import replace
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llama2gpu.backends.base import (
    CACHE_OPS,
    MATRIX_OPS,
    Backend,
    Batch,
    LayerCache,
    Norm,
    Prepared,
    Probe,
    Rope,
    Route,
)
from llama2gpu.backends.cpu_row import cpu_rms_norm_row
from llama2gpu.backends.cpu_rows import probe_rows
from llama2gpu.backends.cpu_step import CpuStep, cpu_attend, cpu_layer, cpu_rope, cpu_step
from llama2gpu.backends.matrix import Matrix
from llama2gpu.backends.prepare import prepare_matrix
from llama2gpu.backends.torch_attention import Places, decode, find_places, sequence, write
from llama2gpu.quant import Dense, Weight
from llama2gpu.weights import LayerWeights

#: New tokens at most whose attention a CPU's kernels take one by one, each reading all its keys.
FEW_QUERIES = 64


class _Turns(NamedTuple):
    """Rows of the RoPE table for some positions, spread over the pairs: [T, 1, head_dim]."""

    rope: Rope
    positions: Tensor
    cos: Tensor  # cos 0, cos 0, cos 1, cos 1, …
    sin: Tensor  # −sin 0, sin 0, −sin 1, sin 1, …


class TorchBackend(Backend):
    """PyTorch on any device that it finds."""

    name: ClassVar[str] = "torch"

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        #: The kind of device whose ways are taken; every choice by device reads it.
        self.kind = device.type
        #: Whether its matrices are with a CPU's compiled kernels; then the steps between are too.
        self.compiled = False
        self._last_turns: _Turns | None = None
        self._last_places: Places | None = None
        self._last_step: CpuStep | None = None
        self._last_queries: tuple[Batch, Batch] | None = None

    @classmethod
    def probe(cls, device: torch.device) -> Probe:
        """Runs a small matmul on the device."""
        try:
            x = torch.ones(2, 2, device=device)
            ok = float((x @ x).sum()) == 8.0
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            return Probe(False, f"PyTorch {torch.__version__} can't use {device}: {reason}")
        return Probe(ok, f"PyTorch {torch.__version__} on {device_name(device)}")

    def prepare(self, weight: Weight, op: str) -> Weight | Matrix:
        """What multiplies fastest on the device; an embedding stays as it is, to be gathered."""
        weight = weight.to(self.device)
        if op == "embed":
            return weight
        matrix = prepare_matrix(weight, self.kind, op == "gate_up")
        self.compiled |= matrix.compiled
        return matrix

    def routes(self) -> dict[str, Route]:
        """See `Backend.routes`; only a CPU has several ways."""
        if self.kind != "cpu" or not probe_rows()[0]:
            return {}
        matrix = Route(
            "rows of C, compiled here: norm, product and epilogue in one call",
            "PyTorch's matrix product; quantized weights are unpacked for it, tile by tile",
            "few tokens wait for memory, which the rows read packed; many for arithmetic",
        )
        attention = Route("C, compiled here", "PyTorch's SDPA", "one query a sequence, or several")
        return dict.fromkeys(MATRIX_OPS, matrix) | dict.fromkeys(CACHE_OPS, attention)

    def embed(self, tokens: Tensor, weight: Prepared) -> Tensor:
        """See `Backend.embed`."""
        table: Weight = weight
        if isinstance(table, Dense):
            return F.embedding(tokens, table.data)
        return table.rows(tokens).dequantize(torch.float32)

    def rms_norm(self, x: Tensor, norm: Norm) -> Tensor:
        """See `Backend.rms_norm`."""
        if x.shape[0] == 1 and self.kind == "cpu":
            return cpu_rms_norm_row(x, norm.weight, norm.eps)
        return F.rms_norm(x.float(), norm.weight.shape, norm.weight, norm.eps).to(x.dtype)

    def linear(self, x: Tensor, weight: Prepared) -> Tensor:
        """See `Backend.linear`."""
        matrix: Matrix = weight
        return matrix.linear(x)

    def linear_with(
        self, x: Tensor, weight: Prepared, norm: Norm | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """See `Backend.linear_with`; one kernel where the matrix has it."""
        if self.borrowed:
            return super().linear_with(x, weight, norm, residual)
        matrix: Matrix = weight
        y = matrix.fused(x, norm, residual, gated=False)
        return super().linear_with(x, weight, norm, residual) if y is None else y

    def rope(self, x: Tensor, rope: Rope, positions: Tensor) -> Tensor:
        """See `Backend.rope`."""
        if self.compiled and x.stride()[1:] == (x.shape[2], 1):
            return cpu_rope(x, rope, positions)
        turns = self._last_turns
        if turns is None or turns.rope is not rope or turns.positions is not positions:
            turns = self._last_turns = _turns(rope, positions)
        wide = x.float()
        swapped = wide.view(*x.shape[:-1], x.shape[-1] // 2, 2).flip(-1).view(x.shape)
        return (wide * turns.cos + swapped * turns.sin).to(x.dtype)

    def silu_mul(self, x: Tensor) -> Tensor:
        """See `Backend.silu_mul`."""
        return F.silu(x[:, 0::2]) * x[:, 1::2]

    def gate_up(self, x: Tensor, norm: Norm, weight: Prepared) -> Tensor:
        """See `Backend.gate_up`."""
        matrix: Matrix = weight
        y = matrix.fused(x, norm, None, gated=True)
        return matrix.gated(self.rms_norm(x, norm)) if y is None else y

    def write_kv(self, k: Tensor, v: Tensor, batch: Batch, cache: LayerCache) -> None:
        """See `Backend.write_kv`."""
        write(k, v, self._places(batch, cache), cache)

    def attend(self, q: Tensor, batch: Batch, cache: LayerCache) -> Tensor:
        """See `Backend.attend`: sequences with one new token together, longer ones one by one."""
        if self._compiled_step(batch, cache):
            return cpu_attend(q, batch, cache)
        if self._compiled_few(batch, cache):
            return cpu_attend(q, self._queries(batch), cache)
        single = all(new == 1 for new in batch.new_counts)
        tables = self._places(batch, cache).tables
        if len(batch.new_counts) > 1 and single:
            return decode(q, batch, cache)
        if len(batch.new_counts) == 1:
            return sequence(q, batch.cached_counts[0], tables[0], cache) if len(q) else q
        out, end = torch.empty_like(q), 0
        for new, length, table in zip(batch.new_counts, batch.cached_counts, tables, strict=True):
            if new:
                out[end : end + new] = sequence(q[end : end + new], length, table, cache)
                end += new
        return out

    def layer(
        self, x: Tensor, w: LayerWeights, eps: float, rope: Rope, batch: Batch, cache: LayerCache
    ) -> Tensor:
        """See `Backend.layer`; a decode step's is one call of the compiled kernels."""
        y = None
        if self._compiled_step(batch, cache) and not self.borrowed:
            y = cpu_layer(x, w, eps, self._step(batch, rope, x.dtype), cache)
        return super().layer(x, w, eps, rope, batch, cache) if y is None else y

    def _compiled_step(self, batch: Batch, cache: LayerCache) -> bool:
        """Whether a CPU's kernels take the attention: one query a sequence."""
        single = self.compiled and all(new == 1 for new in batch.new_counts)
        return single and cache.k.is_contiguous() and cache.v.is_contiguous()

    def _compiled_few(self, batch: Batch, cache: LayerCache) -> bool:
        """Whether they take a few tokens of a prompt too, beside sequences with one."""
        few = len(batch.new_counts) > 1 and sum(batch.new_counts) <= FEW_QUERIES
        return self.compiled and few and cache.k.is_contiguous() and cache.v.is_contiguous()

    def _queries(self, batch: Batch) -> Batch:
        """The batch with each token as a sequence of its own, whose keys are all written."""
        if self._last_queries is None or self._last_queries[0] is not batch:
            counts = torch.tensor(batch.new_counts)
            table = batch.block_table.repeat_interleave(counts, dim=0)
            lengths = (batch.positions + 1).int()
            self._last_queries = batch, replace(batch, block_table=table, lengths=lengths)
        return self._last_queries[1]

    def _step(self, batch: Batch, rope: Rope, kind: torch.dtype) -> CpuStep:
        step = self._last_step
        same = step is not None and step.batch is batch and step.rope is rope and step.kind == kind
        if step is None or not same:
            step = self._last_step = cpu_step(batch, rope, kind)
        return step

    def _places(self, batch: Batch, cache: LayerCache) -> Places:
        places = self._last_places
        if places is None or places.batch is not batch:
            places = find_places(batch, cache.k.shape[2], runs=self.kind == "cpu")
            self._last_places = places
        return places


def device_name(device: torch.device) -> str:
    """What a person calls the device: "cuda:0 (NVIDIA H200)"."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def _turns(rope: Rope, positions: Tensor) -> _Turns:
    cos, sin = rope.cos[positions], rope.sin[positions]  # [T, head_dim / 2]
    signed = torch.stack((-sin, sin), dim=-1).flatten(1)
    return _Turns(rope, positions, cos.repeat_interleave(2, dim=1)[:, None], signed[:, None])

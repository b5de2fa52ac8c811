"""A decode step by the compiled kernels of a CPU (`kernels/step.c`): a layer, or parts of it."""

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from llama2gpu.backends.base import Batch, LayerCache, Rope
from llama2gpu.backends.cpu_rows import Rows, at
from llama2gpu.kernels import rows
from llama2gpu.weights import LayerWeights

_CACHE_KINDS = {**rows.KINDS, torch.int8: rows.INT8}


class CpuStep(NamedTuple):
    """What all layers of a step share, and the tensors that it points into."""

    c: rows.Step
    batch: Batch
    rope: Rope
    kind: torch.dtype


def cpu_step(batch: Batch, rope: Rope, kind: torch.dtype) -> CpuStep:
    """The step of this batch, with activations of `kind`."""
    sequences, width = batch.block_table.shape
    c = rows.Step(
        rows.KINDS[kind], sequences, at(batch.positions), at(batch.slots), at(batch.lengths),
        at(batch.block_table), width, at(rope.cos), at(rope.sin),
    )  # fmt: skip
    return CpuStep(c, batch, rope, kind)


def cpu_layer(
    x: Tensor, layer: LayerWeights, eps: float, step: CpuStep, cache: LayerCache
) -> Tensor | None:
    """See `Backend.layer`, for one query a sequence; None where a matrix has a faster way."""
    if cache.k.dtype not in (x.dtype, torch.int8):
        return None
    matrices = (layer.w_qkv, layer.w_o, layer.w_13, layer.w_2)
    if not all(isinstance(matrix, Rows) and matrix.few(x) for matrix in matrices):
        return None
    addresses = [ctypes.addressof(matrix.packed.c) for matrix in matrices]
    norms = (at(layer.attention_norm), at(layer.ffn_norm))
    x, y = x.contiguous(), torch.empty(x.shape, dtype=x.dtype)
    failed = _bound().step_layer(
        step.c, _cache(cache), rows.Layer(*addresses, *norms, eps), at(x), at(y),
        torch.get_num_threads(),
    )  # fmt: skip
    _check(failed)
    return y


def cpu_rope(x: Tensor, rope: Rope, positions: Tensor) -> Tensor:
    """See `Backend.rope`; x [T, heads, head_dim], whose heads lie side by side."""
    tokens, heads, size = x.shape
    assert x.stride()[1:] == (size, 1)
    out = torch.empty(x.shape, dtype=x.dtype)
    step = rows.Step(
        kind=rows.KINDS[x.dtype], positions=at(positions), cosines=at(rope.cos), sines=at(rope.sin)
    )
    _bound().step_rope(step, at(x), tokens, heads, size, x.stride(0), at(out))
    return out


def cpu_attend(q: Tensor, batch: Batch, cache: LayerCache) -> Tensor:
    """See `Backend.attend`, for one query a sequence."""
    q = q.contiguous()
    sequences, width = batch.block_table.shape
    out = torch.empty(q.shape, dtype=q.dtype)
    step = rows.Step(
        kind=rows.KINDS[q.dtype], sequences=sequences, lengths=at(batch.lengths),
        table=at(batch.block_table), width=width,
    )  # fmt: skip
    threads = torch.get_num_threads()
    _check(_bound().step_attend(step, _cache(cache), q.shape[1], at(q), at(out), threads))
    return out


def _bound() -> ctypes.CDLL:
    bound = rows.library().bound
    assert bound is not None
    return bound


def _cache(cache: LayerCache) -> rows.Cache:
    _, kv_heads, page, size = cache.k.shape
    return rows.Cache(
        _CACHE_KINDS[cache.k.dtype], at(cache.k), at(cache.v), at(cache.k_scale),
        at(cache.v_scale), kv_heads, page, size,
    )  # fmt: skip


def _check(failed: int) -> None:
    if failed == 1:
        raise MemoryError("no memory for a step")
    assert not failed, "matrices and cache of a layer don't fit"

"""Rotation and attention of a decode step by the compiled kernels of a CPU (`kernels/step.c`)."""

import torch
from torch import Tensor

from llama2gpu.backends.base import Batch, LayerCache, Rope
from llama2gpu.backends.cpu_rows import at
from llama2gpu.kernels import rows

_CACHE_KINDS = {**rows.KINDS, torch.int8: rows.INT8}


def cpu_rope(x: Tensor, rope: Rope, positions: Tensor) -> Tensor:
    """See `Backend.rope`; x [T, heads, head_dim], whose heads lie side by side."""
    bound = rows.library().bound
    assert bound is not None
    tokens, heads, size = x.shape
    assert x.stride()[1:] == (size, 1)
    out = torch.empty(x.shape, dtype=x.dtype)
    bound.step_rope(
        at(x), rows.KINDS[x.dtype], tokens, heads, size, x.stride(0), at(rope.cos), at(rope.sin),
        at(positions), at(out),
    )  # fmt: skip
    return out


def cpu_attend(q: Tensor, batch: Batch, cache: LayerCache) -> Tensor:
    """See `Backend.attend`, for one query a sequence."""
    bound = rows.library().bound
    assert bound is not None
    q = q.contiguous()
    sequences, heads, size = q.shape
    _, kv_heads, page, _ = cache.k.shape
    out = torch.empty(q.shape, dtype=q.dtype)
    failed = bound.step_attend(
        at(q), rows.KINDS[q.dtype], sequences, heads, at(batch.lengths),
        _CACHE_KINDS[cache.k.dtype], at(cache.k), at(cache.v), at(cache.k_scale),
        at(cache.v_scale), at(batch.block_table), batch.block_table.shape[1], kv_heads, page, size,
        at(out), torch.get_num_threads(),
    )  # fmt: skip
    if failed:
        raise MemoryError("no memory for attention")
    return out

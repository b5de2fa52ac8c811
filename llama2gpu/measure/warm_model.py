"""The launches of a model, of any size and without its weights: steps on tensors without memory."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from llama2gpu.backends import backend_class
from llama2gpu.backends.base import Batch, LayerCache
from llama2gpu.cache import PAGE
from llama2gpu.config import Config
from llama2gpu.kernels.arch import Arch
from llama2gpu.kernels.launch import Launch, recording
from llama2gpu.kernels.tuned import Tuned
from llama2gpu.model import Model
from llama2gpu.ops.sample import SampleParams
from llama2gpu.quant import Dense, Int4, Int8, QuantSpec, Weight
from llama2gpu.weights import LayerWeights, Weights

META = torch.device("meta")
#: Up to so many tokens may be sequences of their own, that decode together.
FEW = 64
#: Cached tokens of the smallest bucket of a decode step; each is twice the one before.
SHORTEST = 512


def model_launches(
    config: Config,
    quant: QuantSpec | None,
    kv_dtype: torch.dtype,
    tokens: Sequence[int],
    backend: Any,
) -> Iterator[Launch]:
    """What steps of a model launch, in order, with repetitions; activations are bfloat16.

    quant: of its matrices; None is dense. kv_dtype: of its cache, bfloat16 or int8. tokens: up to
    64 are sequences that decode, and also a prompt; more are a prompt alone. backend: a Triton
    backend on device "meta", as `meta_backend` makes it.
    """
    config = replace(config, layers=1)
    model = Model(config, _weights(config, quant, backend), backend, torch.bfloat16)
    for count in tokens:
        for batch in _batches(count, config.context):
            cache = _cache(config, batch, kv_dtype)
            with recording() as launches:
                x = model.forward(_empty(torch.int64, count), batch, [cache])
                last = x[: len(batch.new_counts)]
                for params in _samplings(len(last), config.vocab):
                    drawn = model.draw(last, params)
                    if batch.new_counts == (1,) * count:
                        ids = _empty(torch.int64, count)
                        backend.advance(drawn.tokens, ids, batch, params, PAGE)
            yield from launches


def meta_backend(arch: Arch, multiprocessors: int, tuned: Tuned) -> Any:
    """A Triton backend that plans for a device and has no memory."""
    make: Any = backend_class("triton")
    backend = make(META, arch=arch, tuned=tuned)
    backend.multiprocessors = multiprocessors
    return backend


def _weights(config: Config, quant: QuantSpec | None, backend: Any) -> Weights:
    c, head = config, quant if quant is not None and quant.head else None

    def matrix(op: str, parts: tuple[int, ...], columns: int, spec: QuantSpec | None) -> Any:
        return backend.prepare(_weight(parts, columns, spec), op)

    norm = _empty(torch.float32, c.dim)
    layer = LayerWeights(
        attention_norm=norm,
        w_qkv=matrix("qkv", (c.q_rows, c.kv_rows, c.kv_rows), c.dim, quant),
        w_o=matrix("project_add", (c.dim,), c.q_rows, quant),
        ffn_norm=norm,
        w_13=matrix("gate_up", (c.hidden, c.hidden), c.dim, quant),
        w_2=matrix("project_add", (c.dim,), c.hidden, quant),
    )
    embed = matrix("embed", (c.vocab,), c.dim, None)
    return Weights(embed, (layer,), norm, matrix("logits", (c.vocab,), c.dim, head), nbytes=0)


def _weight(parts: tuple[int, ...], columns: int, quant: QuantSpec | None) -> Weight:
    """As `quant.quantize` would make it of a matrix of these parts."""
    rows, group = sum(parts), quant.group_of(parts, columns) if quant else None
    if quant is None or group is None:
        return Dense(_empty(torch.bfloat16, rows, columns))
    scales = _empty(torch.float16, rows, columns // group)
    if quant.kind == "int8":
        return Int8(_empty(torch.int8, rows, columns), scales)
    zeros = _empty(torch.uint8, rows, columns // group) if quant.zero_points else None
    return Int4(_empty(torch.int32, rows, columns // 8), scales, zeros)


def _batches(count: int, context: int) -> Iterator[Batch]:
    """Sequences that decode, of the lengths that a graph is captured for; and one prompt."""
    pages = -(-context // PAGE)
    if count <= FEW:
        reach = SHORTEST
        while reach < 2 * context:
            yield _batch((1,) * count, min(reach, context), pages)
            reach *= 2
    if 1 < count <= context:
        yield _batch((count,), count, -(-count // PAGE))


def _batch(new: tuple[int, ...], cached: int, pages: int) -> Batch:
    return Batch(
        positions=_empty(torch.int64, sum(new)),
        slots=_empty(torch.int64, sum(new)),
        starts=_empty(torch.int32, len(new) + 1),
        lengths=_empty(torch.int32, len(new)),
        block_table=_empty(torch.int32, len(new), pages),
        new_counts=new,
        cached_counts=(cached,) * len(new),
    )


def _cache(config: Config, batch: Batch, dtype: torch.dtype) -> LayerCache:
    pages = batch.block_table.numel() + 1
    shape = (pages, config.kv_heads, PAGE)
    k, v = (_empty(dtype, *shape, config.head_dim) for _ in range(2))
    if dtype != torch.int8:
        return LayerCache(k, v)
    return LayerCache(k, v, *(_empty(torch.float32, *shape) for _ in range(2)))


def _samplings(count: int, vocab: int) -> Iterator[SampleParams]:
    """Greedy, plain and truncated, each with and without penalties and a bias."""
    reals = ("temperature", "top_p", "min_p", "repetition", "presence", "frequency")
    vectors: dict[str, Any] = {name: _empty(torch.float32, count) for name in reals}
    vectors |= {name: _empty(torch.int64, count) for name in ("top_k", "seed", "draw")}
    bias: dict[str, Any] = {"bias": _empty(torch.float32, count, vocab)}
    penalties: dict[str, Any] = {
        "generated": _empty(torch.int32, count, vocab),
        "prompted": _empty(torch.bool, count, vocab),
    }
    for greedy, truncated in ((True, False), (False, False), (False, True)):
        for tables in ({}, penalties, bias, penalties | bias):
            yield SampleParams(**vectors, **tables, greedy=greedy, truncated=truncated)


def _empty(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=META)

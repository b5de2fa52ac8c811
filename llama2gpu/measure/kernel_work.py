"""What kernels are asked for: an op, a shape, tokens, a kind of weight; and empty arguments."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from llama2gpu.backends.base import Backend, Batch, LayerCache, Norm, Rope
from llama2gpu.config import Config
from llama2gpu.errors import BackendError
from llama2gpu.ops.sample import SampleParams
from llama2gpu.quant import Dense, Int4, Int8, Weight

OPS = (
    "qkv", "attention", "project_add", "gate_up", "draw", "logits", "sample", "embed", "rms_norm",
    "rope", "silu_mul", "write_kv", "linear",
)  # fmt: skip
WEIGHTS = ("int4", "int8", "dense")
#: Bits of a value; dense is bfloat16, as the activations are.
VALUE_BITS = {"int4": 4, "int8": 8, "dense": 16}
#: Up to so many tokens each is a sequence of its own; more are one prompt.
FEW = 64
#: Columns that share a scale of int4, the largest that divides them, and tokens of a page.
GROUPS, PAGE = (128, 64, 32), 64


@dataclass(frozen=True)
class Work:
    """One op in one use.

    weight: of its matrix, or int8 for a quantized cache. m: rows of activations. n, k: rows and
    columns of its matrix; of attention keys and head size; else numbers of a row, and None.
    context: tokens of a sequence when the op is done.
    """

    config: Config
    op: str
    case: str
    weight: str
    m: int
    n: int
    k: int | None
    context: int

    @property
    def has_matrix(self) -> bool:
        """Whether it reads all of a matrix."""
        return self.k is not None and self.op not in ("attention", "embed")

    @property
    def is_prefill(self) -> bool:
        """Whether the tokens are one prompt, and computing rather than reading takes the time."""
        return self.m > FEW

    @property
    def bytes_per_value(self) -> float:
        """Of the matrix or the cache, scales included."""
        if self.op == "attention":
            return 1 + 4 / self.config.head_dim if self.weight == "int8" else 2.0
        if self.weight == "dense":
            return 2.0
        return VALUE_BITS[self.weight] / 8 + 2 / self.group

    @property
    def group(self) -> int:
        """Columns of its matrix that share a scale; one dense value has none."""
        return _group(self.weight, self.k or 1)

    @property
    def sequences(self) -> int:
        """How many the tokens belong to."""
        return 1 if self.is_prefill else self.m

    @property
    def value_bits(self) -> int:
        """Of the matrix or the cache."""
        return VALUE_BITS[self.weight]

    @property
    def streamed_bytes(self) -> int:
        """Of the tensor that takes most of the time: the matrix or the keys; 0 where none does."""
        values = self.n * (self.k or 1)
        if self.op == "attention":
            values *= self.sequences * self.config.kv_heads
            return values if self.weight == "int8" else 2 * values
        return values * VALUE_BITS[self.weight] // 8 if self.has_matrix else 0


def works(
    config: Config, ops: Sequence[str], weights: Sequence[str], tokens: Sequence[int], context: int
) -> Iterator[Work]:
    """All uses of the ops on one model. Raises `BackendError` for a context that it lacks."""
    if context > config.context:
        raise BackendError(f"the shape has a context of {config.context} tokens, not {context}")
    q, kv, dim, hidden = config.q_rows, config.kv_rows, config.dim, config.hidden
    sizes: dict[str, list[tuple[str, int, int | None]]] = {
        "qkv": [("", q + 2 * kv, dim)],
        "attention": [("", context, config.head_dim)],
        "project_add": [("attention", dim, q), ("feed-forward", dim, hidden)],
        "gate_up": [("", 2 * hidden, dim)],
        "draw": [("", config.vocab, dim)],
        "logits": [("", config.vocab, dim)],
        "sample": [("truncated", config.vocab, None), ("penalized", config.vocab, None)],
        "embed": [("", config.vocab, dim)],
        "rms_norm": [("", dim, None)],
        "rope": [("", q, None)],
        "silu_mul": [("", hidden, None)],
        "write_kv": [("", kv, None)],
        "linear": [("", hidden, dim)],
    }
    for op in ops:
        kinds = [w for w in weights if _has_kind(op, w)]
        for (use, n, k), weight, m in ((s, w, m) for s in sizes[op] for w in kinds for m in tokens):
            if weight == "int4" and not _group(weight, k or 1):
                continue
            if op in ("draw", "logits", "sample") and m > FEW:
                continue  # of a prompt the last token alone is asked for
            case = "decode" if m == 1 else f"{m} sequences" if m <= FEW else "prefill"
            case = f"{case}, {use}" if use else case
            length = max(context, m) if m > FEW else context
            yield Work(config, op, case, weight, m, length if op == "attention" else n, k, length)


def _has_kind(op: str, weight: str) -> bool:
    if op in ("attention", "write_kv"):
        return weight != "int4"
    return weight == "dense" or op not in ("sample", "rms_norm", "rope", "silu_mul")


def _group(weight: str, columns: int) -> int:
    """Columns that share a scale; 0 where no group divides them."""
    if weight == "int8":
        return columns
    return next((group for group in GROUPS if columns % group == 0), 0)


def meta_arguments(work: Work, backend: Backend) -> dict[str, Any]:
    """The op's arguments by name, on device "meta": shapes and types without memory."""
    c, op, m = work.config, work.op, work.m
    x, batch, cache = _real(m, c.dim), _batch(work), _cache(work)
    norm = Norm(_empty(torch.float32, c.dim), c.norm_eps)
    rope = Rope(*(_empty(torch.float32, c.context, c.head_dim // 2) for _ in range(2)))
    queries = _real(m, c.heads, c.head_dim)
    keys, values = (_real(m, c.kv_heads, c.head_dim) for _ in range(2))
    table: dict[str, dict[str, Any]] = {
        "qkv": {"x": x, "norm": norm, "rope": rope, "batch": batch, "cache": cache},
        "attention": {"q": queries, "batch": batch, "cache": cache},
        "project_add": {"a": _real(m, work.k or 1), "x": x},
        "gate_up": {"x": x, "norm": norm},
        "draw": {"x": x, "norm": norm, "params": _sampling(work)},
        "logits": {"x": x, "norm": norm},
        "sample": {"logits": _empty(torch.float32, m, c.vocab), "params": _sampling(work)},
        "embed": {"tokens": _empty(torch.int64, m)},
        "rms_norm": {"x": x, "norm": norm},
        "rope": {"x": queries, "rope": rope, "positions": batch.positions},
        "silu_mul": {"x": _real(m, 2 * c.hidden)},
        "write_kv": {"k": keys, "v": values, "batch": batch, "cache": cache},
        "linear": {"x": x},
    }
    arguments = table[op]
    if work.has_matrix or op == "embed":
        arguments["weight"] = backend.prepare(_weight(work.weight, work.n, work.k or 1), op)
    return arguments


def _empty(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _real(*shape: int) -> torch.Tensor:
    return _empty(torch.bfloat16, *shape)


def _weight(kind: str, n: int, k: int) -> Weight:
    if kind == "dense":
        return Dense(_real(n, k))
    scales = _real(n, k // _group(kind, k))
    if kind == "int8":
        return Int8(_empty(torch.int8, n, k), scales)
    return Int4(_empty(torch.int32, n, k // 8), scales)


def _batch(work: Work) -> Batch:
    """New tokens at the end of the context: one each of m sequences, or a prompt of m."""
    sequences = work.sequences
    new = (work.m // sequences,) * sequences
    return Batch(
        positions=_empty(torch.int64, work.m),
        slots=_empty(torch.int64, work.m),
        starts=_empty(torch.int32, sequences + 1),
        lengths=_empty(torch.int32, sequences),
        block_table=_empty(torch.int32, sequences, -(-work.context // PAGE)),
        new_counts=new,
        cached_counts=(work.context,) * sequences,
    )


def _cache(work: Work) -> LayerCache:
    """As many pages as the batch fills, and one to spare."""
    c = work.config
    pages = work.sequences * -(-work.context // PAGE) + 1
    kind = torch.int8 if _is_cache_op(work.op) and work.weight == "int8" else torch.bfloat16
    k, v = (_empty(kind, pages, c.kv_heads, PAGE, c.head_dim) for _ in range(2))
    if kind != torch.int8:
        return LayerCache(k, v)
    return LayerCache(k, v, *(_empty(torch.float32, pages, c.kv_heads, PAGE) for _ in range(2)))


def _is_cache_op(op: str) -> bool:
    return op in ("attention", "write_kv")


def _sampling(work: Work) -> SampleParams:
    """Temperature; truncation, penalties and a bias where the op and the case say so."""
    reals = ("temperature", "top_p", "min_p", "repetition", "presence", "frequency")
    vectors: dict[str, Any] = {name: _empty(torch.float32, work.m) for name in reals}
    vectors |= {name: _empty(torch.int64, work.m) for name in ("top_k", "seed", "draw")}
    params = SampleParams(**vectors, truncated=work.op == "sample")
    if "penalized" not in work.case:
        return params
    kinds = {"bias": torch.float32, "generated": torch.int32, "prompted": torch.bool}
    tables: dict[str, Any] = {name: _empty(kind, work.m, work.n) for name, kind in kinds.items()}
    return replace(params, **tables)

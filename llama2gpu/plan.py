"""What a model takes of a device's memory, told before any of it is loaded.

The forms of the matrices are not said here again: some rows of each are made and prepared by the
backend itself, and the rest follows by their number.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch

from llama2gpu.backends.base import Backend
from llama2gpu.cache import PAGE, KVCache
from llama2gpu.checkpoints import Checkpoint
from llama2gpu.engine import CHUNK
from llama2gpu.quant import Dense, QuantSpec, Weight, join_rows, quantize
from llama2gpu.weights import LAYER_OPS, dtype_name

#: Rows that are prepared: a multiple of what any kernel keeps side by side.
ROWS = 128
#: The tensors that make up a canonical matrix.
PARTS = {
    "w_qkv": ("wq", "wk", "wv"), "w_o": ("wo",), "w_13": ("w1", "w3"), "w_2": ("w2",),
    "output": ("output",), "embed": ("embed",),
}  # fmt: skip
#: Bytes of a few small things: programs, counters, results of steps.
SMALL = 8 << 20
#: Bytes of freed memory that the C library keeps at hand, at most, before it gives any back; and
#: how much more than what a layer takes is freed while it is loaded.
HEAP, FREED = 64 << 20, 2


class Need(NamedTuple):
    """What is to be run: sequences at once, tokens of each, and the type of the cache."""

    context: int
    batch: int = 1
    kv_dtype: torch.dtype | None = None


class Kept(NamedTuple):
    """A matrix: bytes that are kept of it, and those that it takes besides while it is loaded.

    kind: "int4", "int8", or the type of a dense one.
    """

    kind: str
    nbytes: int
    loading: int


@dataclass(frozen=True)
class Plan:
    """Bytes that a model takes.

    weights: of the matrices by kind, "int4" or "bf16" say, and "fp32" of norms and RoPE's table.
    cache: keys and values. scratch: activations and results of a step. loading: the most that is
    taken while the weights are loaded beyond the weights themselves.
    """

    weights: Mapping[str, int]
    cache: int
    scratch: int
    loading: int

    @property
    def total(self) -> int:
        """The most that is taken at any time."""
        return sum(self.weights.values()) + max(self.cache + self.scratch, self.loading)


class Planner:
    """Plans for one checkpoint on one backend; dtype: of dense matrices. spec: None as stored."""

    def __init__(
        self, checkpoint: Checkpoint, backend: Backend, dtype: torch.dtype,
        spec: QuantSpec | None = None,
    ) -> None:  # fmt: skip
        self.checkpoint, self.config, self.backend = checkpoint, checkpoint.config, backend
        # calibrated ones are of the same form
        self.spec = None if spec is None else replace(spec, method="rtn")
        self.dtype = dtype
        self.activations = backend.activation_dtype(dtype)
        self.proposed = False
        self._forms: dict[tuple[str, ...], Kept] = {}

    def with_spec(self, spec: QuantSpec) -> "Planner":
        """The same for weights that are quantized on load, which nobody has asked for yet."""
        other = Planner(self.checkpoint, self.backend, self.dtype, spec)
        other.proposed = True
        return other

    def plan(self, need: Need) -> Plan:
        """What it takes to run so much."""
        kept = self._kept
        weights = Counter[str]()
        for matrix in kept:
            weights[matrix.kind] += matrix.nbytes
        c, reach = self.config, max(need.context, 2048)
        weights["fp32"] += 4 * (2 * c.layers + 1) * c.dim + 4 * reach * c.head_dim
        weights = Counter({kind: count for kind, count in weights.items() if count})
        return Plan(
            dict(weights.most_common()), self.cache(need), self.scratch(need), self._loading(kept)
        )  # fmt: skip

    def cache(self, need: Need) -> int:
        """Bytes of the pages that so many sequences hold."""
        meta = torch.device("meta")
        empty = KVCache(self.config, 0, need.kv_dtype or self.activations, meta)
        return need.batch * empty.pages_for(need.context) * PAGE * empty.token_bytes

    def scratch(self, need: Need) -> int:
        """About what a step of the longest kind takes: a chunk of a prompt, logits of all."""
        c, tokens = self.config, min(need.context * need.batch, CHUNK)
        inner = max(4 * c.hidden, c.q_rows + 2 * c.kv_rows + c.dim)
        values = tokens * (2 * c.dim + inner) + 2 * min(need.context, 2 * CHUNK) * c.q_rows
        return values * self.activations.itemsize + 16 * need.batch * c.vocab + SMALL

    @cached_property
    def _kept(self) -> list[Kept]:
        """All matrices in the order in which they are loaded; a tied one comes once."""
        c = self.config
        found = [] if c.tied else [self._matrix("embed", "embed", "embed")]
        for n in range(c.layers):
            found += [self._matrix(f"layers.{n}.", name, op) for name, op in LAYER_OPS.items()]
        head = self._matrix("embed" if c.tied else "output", "output", "logits")
        return [*found, head, *([self._again(head)] if c.tied else [])]

    def _matrix(self, prefix: str, name: str, op: str) -> Kept:
        names = [prefix + part for part in PARTS[name]] if prefix.endswith(".") else [prefix]
        infos = [self._infos[one] for one in names]
        key = (op, *(f"{info.dtype} {info.shape}" for info in infos))
        if key not in self._forms:
            self._forms[key] = self._form(names, name, op)
        return self._forms[key]

    def _form(self, names: list[str], name: str, op: str) -> Kept:
        rows = sum(self._infos[one].shape[0] for one in names)
        sample = join_rows([self._sample(one) for one in names])
        read = sample.nbytes
        if self.spec is not None and name != "embed" and (name != "output" or self.spec.head):
            sample = self._quantized(sample, names)
            read += sample.nbytes
        if isinstance(sample, Dense):
            sample = Dense(sample.data.to(self.dtype))
        sample = sample.to(self.backend.device)
        prepared = self.backend.prepare(sample, op)
        scale = rows / sample.shape[0]
        shares = prepared is sample or not _storages(prepared).isdisjoint(_storages(sample))
        kind = type(sample).__name__.lower()
        kind = dtype_name(self.dtype) if kind == "dense" else kind
        return Kept(kind, round(scale * prepared.nbytes), 0 if shares else round(scale * read))

    def _sample(self, name: str) -> Weight:
        """Some rows of a tensor as they are read."""
        rows, columns = self._infos[name].shape
        if self.checkpoint.kind(name) != "dense":
            return self.checkpoint.weight(name).rows(slice(0, ROWS))
        kind = self.dtype if self.spec is None else self.checkpoint.dtype
        return Dense(torch.zeros(min(rows, ROWS), columns, dtype=kind))

    def _quantized(self, sample: Weight, names: list[str]) -> Weight:
        """The same rows as they are quantized on load."""
        assert self.spec is not None
        group = self.spec.group_of([self._infos[one].shape[0] for one in names], sample.shape[1])
        generator = torch.Generator().manual_seed(0)
        return quantize(torch.randn(sample.shape, generator=generator), self.spec, group)

    def _again(self, head: Kept) -> Kept:
        """What a tied embedding takes beside the head, of which it may be the same memory."""
        embed = self._matrix("embed", "output", "embed")
        return embed._replace(nbytes=0, loading=0) if head.loading == 0 else embed

    def _loading(self, kept: list[Kept]) -> int:
        """The most that is taken while they come in turn, beyond what is kept in the end.

        A layer is read as a whole before it goes to the backend, whose memory has one matrix twice.
        """
        on_host = self.backend.device.type == "cpu"
        level, most, first = 0, 0, 0 if self.config.tied else 1
        for i, matrix in enumerate(kept):
            start = first + (i - first) // len(LAYER_OPS) * len(LAYER_OPS) if on_host else i
            level += matrix.nbytes
            taken = sum(m.loading for m in kept[start : i + 1])
            most = max(most, level + taken + (min(FREED * taken, HEAP) if on_host else 0))
        return most - level

    @cached_property
    def _infos(self) -> dict[str, Any]:
        return {info.name: info for info in self.checkpoint.tensors()}


def _storages(of: Any) -> set[int]:
    """Where the memory begins of all tensors within a value."""
    found: set[int] = set()
    for part in getattr(of, "__dict__", {}).values():
        if isinstance(part, torch.Tensor):
            found.add(part.untyped_storage().data_ptr())
        elif hasattr(part, "__dict__"):
            found |= _storages(part)
    return found


def text_of(count: int) -> str:
    """Bytes for a person: "13.5 GB"."""
    for unit, scale in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 1000)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count} bytes"

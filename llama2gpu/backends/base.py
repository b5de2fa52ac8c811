"""The op contract: what each op means, for every backend and every caller.

Tokens are flat: T new tokens of any number S of sequences, and a `Batch` that says where each
belongs. Tensors are torch tensors on the backend's device; "x" and all activations have one
floating type. Matrices are what the same backend's `prepare` returned. Rows of q and k are in
adjacent-pair RoPE order. A backend defines the primitives; a fused op composes them until the
backend brings a faster one of its own.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from llama2gpu.backends.graphs import Capture
from llama2gpu.ops.advance import advance
from llama2gpu.ops.paged import LayerCache as LayerCache
from llama2gpu.ops.sample import Drawn, SampleParams, sample
from llama2gpu.quant import Weight
from llama2gpu.weights import LayerWeights

PRIMITIVES = ("embed", "rms_norm", "linear", "rope", "silu_mul", "write_kv", "attend")
FUSED = ("qkv", "attention", "project_add", "gate_up", "logits", "sample")
OPS = PRIMITIVES + FUSED
#: The ops that read a matrix, and those that read the cache.
MATRIX_OPS, CACHE_OPS = (
    ("linear", "qkv", "project_add", "gate_up", "logits"),
    ("attend", "attention"),
)

#: The largest code of a quantized cache, and the least scale: below it all is zero, so that how a
#: device treats subnormal numbers does not show.
CODE, TINY = 127, torch.finfo(torch.float32).tiny

#: A matrix as a backend keeps it: packed, padded and placed by its `prepare`. It has `nbytes`, what
#: reading it once takes.
Prepared = Any


class Probe(NamedTuple):
    """Whether a backend runs on a device: `detail` says on what, or why not and what mends it."""

    ok: bool
    detail: str


class Route(NamedTuple):
    """In words for a person: what serves an op at decode and at prefill, and by which rule."""

    decode: str
    prefill: str
    why: str


class Norm(NamedTuple):
    """An RMSNorm: weight float32 [dim], and the epsilon added to the mean square."""

    weight: Tensor
    eps: float


class Rope(NamedTuple):
    """The RoPE table, float32 [context, head_dim / 2] each (`ops.rope`)."""

    cos: Tensor
    sin: Tensor


class Looping(NamedTuple):
    """How decode steps follow each other.

    lag: steps that are launched before the oldest is read. buckets: attention goes by the lengths
    on the device, so that `Batch.cached_counts` may be upper bounds and a batch may be padded, both
    to few sizes. capture: makes what makes graphs of work that has run once; None where there are
    none. The graphs of one `Capture` share their memory.
    """

    lag: int = 0
    buckets: bool = False
    capture: Callable[[], Capture] | None = None


@dataclass(frozen=True)
class Batch:
    """Where each of T new tokens of S sequences belongs.

    positions: int64 [T], place in its sequence.
    slots: int64 [T], page · page size + offset: where its key and value go.
    starts: int32 [S + 1], first new token of each sequence, T last.
    lengths: int32 [S], cached tokens of each sequence once this batch is written.
    block_table: int32 [S, P], pages of each sequence in order; past its end any valid page.
    new_counts, cached_counts: per sequence, new tokens and `lengths`, on the host.
    """

    positions: Tensor
    slots: Tensor
    starts: Tensor
    lengths: Tensor
    block_table: Tensor
    new_counts: tuple[int, ...]
    cached_counts: tuple[int, ...]


class Backend(ABC):
    """Computes the ops on one device. Subclasses say what they support and bring the primitives."""

    name: ClassVar[str]

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.borrowed: Mapping[str, Backend] = {}

    @property
    def label(self) -> str:
        """The name, and which ops are borrowed from whom."""
        loans = ", ".join(f"{op} from {other.name}" for op, other in self.borrowed.items())
        return f"{self.name} ({loans})" if loans else self.name

    @classmethod
    @abstractmethod
    def probe(cls, device: torch.device) -> Probe:
        """Whether this backend runs on `device`, found out by running something small."""

    def routes(self) -> Mapping[str, Route]:
        """Which of several ways an op takes; one that has a single way is left out."""
        return {}

    def activation_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The type that activations and cache take where the weights have `dtype`."""
        return dtype

    @abstractmethod
    def prepare(self, weight: Weight, op: str) -> Prepared:
        """`weight` in the form that this backend's `op` reads; done once, at load.

        op: "embed", "linear" or one of the fused ops that take a matrix.
        """

    def current(self) -> AbstractContextManager[object]:
        """Makes the device the current one of this thread, where a library asks for that."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def looping(self) -> Looping:
        """How it takes decode steps that follow each other; asked once by whoever runs them."""
        return Looping()

    # Primitives

    @abstractmethod
    def embed(self, tokens: Tensor, weight: Prepared) -> Tensor:
        """Rows of the embedding: tokens int64 [T] → [T, dim]."""

    @abstractmethod
    def rms_norm(self, x: Tensor, norm: Norm) -> Tensor:
        """x / √(mean(x²) + eps) · weight over the last axis, computed in float32; [T, dim].

        Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019).
        """

    @abstractmethod
    def linear(self, x: Tensor, weight: Prepared) -> Tensor:
        """X · Wᵀ, accumulated in float32 or better: [T, K] and [N, K] → [T, N]."""

    @abstractmethod
    def rope(self, x: Tensor, rope: Rope, positions: Tensor) -> Tensor:
        """Turns each pair (2i, 2i + 1) of [T, heads, head_dim] by the angle of its position."""

    @abstractmethod
    def silu_mul(self, x: Tensor) -> Tensor:
        """silu(gate) · up, gates and ups interleaved: [T, 2 · hidden] → [T, hidden]."""

    @abstractmethod
    def write_kv(self, k: Tensor, v: Tensor, batch: Batch, cache: LayerCache) -> None:
        """Writes keys and values [T, kv_heads, head_dim] into the cache at the batch's slots.

        A quantized cache takes, for each vector x, scale = max|x| / `CODE` and codes x / scale,
        rounded half to even: both divisions in float32 and correctly rounded, so that all backends
        write the same bytes. A scale below `TINY` is 0, and its codes are.
        """

    @abstractmethod
    def attend(self, q: Tensor, batch: Batch, cache: LayerCache) -> Tensor:
        """Causal attention of [T, heads, head_dim] over the cached keys → the same shape.

        Scores are scaled by 1 / √head_dim; softmax in float32; query head h reads key-value head
        h · kv_heads / heads. The batch's own keys are in the cache already. The scales of a
        quantized cache may multiply keys and values or, which is less, scores and probabilities.
        """

    def linear_with(
        self, x: Tensor, weight: Prepared, norm: Norm | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """`linear` of the normalized x, plus the residual: what the default fused ops are made of.

        No op of its own, so that it can't be borrowed; a backend may do it in one kernel.
        """
        y = self.linear(x if norm is None else self.rms_norm(x, norm), weight)
        return y if residual is None else y + residual

    # Fused ops: five make a decoder layer

    def qkv(
        self, x: Tensor, norm: Norm, weight: Prepared, rope: Rope, batch: Batch, cache: LayerCache
    ) -> Tensor:
        """RMSNorm, projection and rotation; keys and values go to the cache.

        x [T, dim], weight [(heads + 2 kv_heads) · head_dim, dim] → q [T, heads, head_dim].
        """
        _, kv_heads, _, head_dim = cache.k.shape
        y = self.linear_with(x, weight, norm)
        heads = y.shape[1] // head_dim - 2 * kv_heads
        y = y.view(len(x), heads + 2 * kv_heads, head_dim)
        turned = self.rope(y[:, :-kv_heads], rope, batch.positions)
        self.write_kv(turned[:, heads:], y[:, -kv_heads:], batch, cache)
        return turned[:, :heads]

    def attention(self, q: Tensor, batch: Batch, cache: LayerCache) -> Tensor:
        """Causal attention with the heads joined: [T, heads, head_dim] → [T, heads · head_dim]."""
        return self.attend(q, batch, cache).flatten(1)

    def project_add(self, a: Tensor, weight: Prepared, x: Tensor | None) -> Tensor:
        """A · Wᵀ + x, where the residual x [T, dim] is optional: [T, K] → [T, dim]."""
        return self.linear_with(a, weight, residual=x)

    def gate_up(self, x: Tensor, norm: Norm, weight: Prepared) -> Tensor:
        """RMSNorm, both projections (rows interleaved gate, up), silu(gate) · up.

        x [T, dim], weight [2 · hidden, dim] → [T, hidden]. Source: Shazeer, "GLU Variants" (2020).
        """
        return self.silu_mul(self.linear(self.rms_norm(x, norm), weight))

    def layer(
        self, x: Tensor, w: LayerWeights, eps: float, rope: Rope, batch: Batch, cache: LayerCache
    ) -> Tensor:
        """A decoder layer, of five fused ops: x [T, dim] → [T, dim]; keys and values are cached.

        No op of its own either; a backend may take the whole layer in one call.
        """
        q = self.qkv(x, Norm(w.attention_norm, eps), w.w_qkv, rope, batch, cache)
        a = self.attention(q, batch, cache)
        x = self.project_add(a, w.w_o, x)
        h = self.gate_up(x, Norm(w.ffn_norm, eps), w.w_13)
        return self.project_add(h, w.w_2, x)

    def logits(self, x: Tensor, norm: Norm, weight: Prepared) -> Tensor:
        """Final RMSNorm and head: [S, dim] and [vocab, dim] → at least float32 [S, vocab]."""
        y = self.linear_with(x, weight, norm)
        return y.to(torch.promote_types(y.dtype, torch.float32))

    def sample(self, logits: Tensor, params: SampleParams) -> tuple[Tensor, Tensor]:
        """Next tokens int64 [S] and their log-probabilities; `ops.sample` is the definition."""
        return sample(logits, params)

    def draw(self, x: Tensor, norm: Norm, weight: Prepared, params: SampleParams) -> Drawn:
        """The next tokens of hidden states [S, dim]: `logits`, then `sample`.

        No op of its own either; a backend may draw while it computes the logits.
        """
        logits = self.logits(x, norm, weight)
        return Drawn(*self.sample(logits, params), logits)

    def advance(
        self, drawn: Tensor, tokens: Tensor, batch: Batch, params: SampleParams, page: int
    ) -> None:
        """Makes what was drawn the next step's input, in place; `ops.advance` is the definition.

        Every sequence of the batch has one new token. No op of its own.
        """
        places = (batch.positions, batch.lengths, batch.slots, batch.block_table)
        advance(drawn, tokens, *places, page, params)

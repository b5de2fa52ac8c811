"""A model taken op by op over tokens, each op on inputs that another backend gets too.

The first walk records: its own outputs, rounded to the coarser type of the two backends, are what
every later walk feeds to its ops, and what the first one's ops wrote is what a later one's
attention finds in its cache. So an op's error is its own, whatever the ops before it did.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llama2gpu.backends.base import CODE, Batch, LayerCache, Norm
from llama2gpu.backends.numpy import NumpyBackend
from llama2gpu.batch import Span, build_batch
from llama2gpu.cache import KVCache
from llama2gpu.model import Model
from llama2gpu.weights import LayerWeights

#: What a slot holds before it is written: finite, and large enough to show where it stays.
GARBAGE, GARBAGE_CODE = 1e4, 99

#: First token and number of tokens of each step.
Chunks = Sequence[tuple[int, int]]


class Place(NamedTuple):
    """An op's output: `part` says which, or which matrix the op reads, where it has several.

    layer: None before the first and after the last.
    """

    layer: int | None
    op: str
    part: str = ""


#: Rows [T, n] of what each place gave, on the CPU.
Track = dict[Place, Tensor]


class Walk:
    """One model's ops over tokens int64 [T], all of one sequence.

    narrow: the type that inputs are rounded to. kv_dtype: int8 for a quantized cache, None for the
    activations' type. source: the walk whose outputs are the inputs here; its own where None.
    track: what the ops gave. rounded: where there is no source and a quantized cache's numbers may
    be rounded to the narrow type, attention by NumPy with and without that.
    """

    def __init__(
        self,
        model: Model,
        tokens: Tensor,
        narrow: torch.dtype,
        kv_dtype: torch.dtype | None = None,
        source: "Walk | None" = None,
    ) -> None:
        self.model, self.backend = model, model.backend
        self.tokens = tokens.to(model.backend.device)
        self.narrow, self.kv_dtype, self.source = narrow, kv_dtype, source
        self.track: Track = {}
        self.rounded: tuple[Track, Track] = ({}, {})
        self.cache = self._dirty_cache()

    def ops(self, chunks: Chunks) -> Track:
        """Each op of every layer, and those around them; every chunk goes through them all."""
        model, weights = self.model, self.model.weights
        for rows, batch in self._batches(chunks):
            x = self._keep(
                Place(None, "embed"),
                rows,
                # quantized rows come wider, and the model rounds them
                self.backend.embed(self.tokens[rows], weights.embed).to(self.narrow),
            )
            for n, (layer, cache) in enumerate(zip(weights.layers, self.cache.layers, strict=True)):
                x = self._layer(n, x, rows, layer, batch, cache)
            self._keep(Place(None, "logits"), rows, model.logits(x))
        return self.track

    def layers(self, chunks: Chunks) -> Track:
        """Each layer in one call, as a backend may take it, on the source's inputs."""
        assert self.source is not None
        self.cache, before = self._dirty_cache(), Place(None, "embed")
        model, inputs = self.model, [before]
        inputs += [Place(n, "project_add", "w_2") for n in range(model.config.layers)]
        for rows, batch in self._batches(chunks):
            layers = zip(inputs, model.weights.layers, self.cache.layers, strict=False)
            for n, (place, layer, cache) in enumerate(layers):
                x = self._input(self.source.track[place][rows])
                eps = model.config.norm_eps
                y = self.backend.layer(x, layer, eps, model.rope, batch, cache)
                self._put(Place(n, "layer"), rows, y)
                self._settle(n, cache, _places(batch, cache))
        return self.track

    def _layer(
        self, n: int, x: Tensor, rows: slice, w: LayerWeights, batch: Batch, cache: LayerCache
    ) -> Tensor:
        b, eps = self.backend, self.model.config.norm_eps
        q = self._keep(Place(n, "qkv", "q"), rows, self._qkv(n, x, rows, w, batch, cache))
        if self.source is None and cache.k_scale is not None and self.narrow != torch.float32:
            for track, y in zip(
                self.rounded, _roundings(q, batch, cache, self.narrow), strict=True
            ):
                self._put(Place(n, "attention"), rows, y, track)
        a = self._keep(Place(n, "attention"), rows, b.attention(q, batch, cache))
        x = self._keep(Place(n, "project_add", "w_o"), rows, b.project_add(a, w.w_o, x))
        h = self._keep(Place(n, "gate_up"), rows, b.gate_up(x, Norm(w.ffn_norm, eps), w.w_13))
        return self._keep(Place(n, "project_add", "w_2"), rows, b.project_add(h, w.w_2, x))

    def _qkv(
        self, n: int, x: Tensor, rows: slice, w: LayerWeights, batch: Batch, cache: LayerCache
    ) -> Tensor:
        """Queries; what the op wrote is kept, and the source's takes its place in the cache."""
        norm, at = Norm(w.attention_norm, self.model.config.norm_eps), _places(batch, cache)
        exact = None
        if self.source is None and cache.k_scale is not None:
            plain = LayerCache(*(x.new_zeros(part.shape) for part in cache[:2]))
            self.backend.qkv(x, norm, w.w_qkv, self.model.rope, batch, plain)
            exact = [part[at] for part in plain[:2]]
        before = _copied(cache)
        q = self.backend.qkv(x, norm, w.w_qkv, self.model.rope, batch, cache)
        strayed = [_restored(part, old, at) for part, old in zip(cache, before, strict=True)]
        for i, part in enumerate(("keys", "values")):
            place, scales = Place(n, "qkv", part), cache[2 + i]
            found = (cache.k, cache.v)[i][at].cpu()  # [T, kv_heads, head_dim]
            if exact is not None:
                found = _with_largest(exact[i].cpu())
            elif scales is not None and self.source is not None:
                found = _unrounded(found, scales[at].cpu(), self.source.track[place][rows])
            if strayed[i] or strayed[2 + i]:
                found = torch.full_like(found, torch.nan, dtype=torch.float32)
            self._put(place, rows, found)
        self._settle(n, cache, at)
        return q

    def _settle(self, n: int, cache: LayerCache, at: tuple[Tensor, slice, Tensor]) -> None:
        """The slots of a batch as the source's cache has them, in the narrow type."""
        source = cache if self.source is None else list(self.source.cache.layers)[n]
        theirs = tuple(x.to(source.k.device) if isinstance(x, Tensor) else x for x in at)
        for part, other in zip(cache, source, strict=True):
            if part is not None and other is not None:
                kind = self.narrow if cache.k_scale is None else other.dtype
                part[at] = other[theirs].to(kind).to(part.device, part.dtype)

    def _keep(self, place: Place, rows: slice, out: Tensor) -> Tensor:
        """Records an output; returns what the next op gets in its place."""
        self._put(place, rows, out)
        source = self if self.source is None else self.source
        return self._input(source.track[place][rows]).view(out.shape)

    def _put(self, place: Place, rows: slice, out: Tensor, track: Track | None = None) -> None:
        flat, track = out.flatten(1).cpu(), self.track if track is None else track
        if place not in track:
            track[place] = flat.new_full((len(self.tokens), flat.shape[1]), torch.nan)
        track[place][rows] = flat

    def _input(self, rows: Tensor) -> Tensor:
        return rows.to(self.narrow).to(self.backend.device, self.model.activations)

    def _batches(self, chunks: Chunks) -> Iterator[tuple[slice, Batch]]:
        pages = list(range(self.cache.pages))
        for start, count in chunks:
            span = Span(pages, start, count)
            batch = build_batch([span], self.cache.page, self.backend.device)
            yield slice(start, start + count), batch

    def _dirty_cache(self) -> KVCache:
        kind = self.kv_dtype or self.model.activations
        cache = KVCache(self.model.config, 0, kind, self.backend.device)
        cache.grow(cache.pages_for(len(self.tokens)))
        for part in cache.parts:
            part.fill_(GARBAGE if part.is_floating_point() else GARBAGE_CODE)
        return cache


def _places(batch: Batch, cache: LayerCache) -> tuple[Tensor, slice, Tensor]:
    """The index of a batch's slots in a part of the cache."""
    page = cache.k.shape[2]
    return batch.slots // page, slice(None), batch.slots % page


def _copied(cache: LayerCache) -> LayerCache:
    return LayerCache(*(part.clone() for part in cache if part is not None))


def _restored(part: Tensor | None, before: Tensor | None, at: tuple[Tensor, slice, Tensor]) -> bool:
    """Takes back what was written to other slots; returns whether anything was."""
    if part is None or before is None:
        return False
    before[at] = part[at]
    strayed = not torch.equal(part.nan_to_num(), before.nan_to_num())
    part.copy_(before)
    return strayed


def _with_largest(x: Tensor) -> Tensor:
    """Vectors float32 [T, kv_heads, head_dim] with the largest magnitude of each behind it."""
    wide = x.float()
    return torch.cat((wide, wide.abs().amax(dim=-1, keepdim=True)), dim=-1)


def _unrounded(codes: Tensor, scales: Tensor, wanted: Tensor) -> Tensor:
    """What a quantized cache holds, but for the half step by which any code may be off.

    codes [T, kv_heads, head_dim]; wanted, rows of the unquantized vectors as `_with_largest` makes
    them. Returns the same form: the wanted numbers plus what the codes are too far from them.
    """
    exact = wanted.view(*codes.shape[:2], -1)[..., :-1].double()
    step = scales.double()[..., None]
    excess = ((codes * step - exact).abs() - step * (0.5 + 1e-6)).clamp_min(0)
    return torch.cat((exact + excess, CODE * step), dim=-1)


def _roundings(q: Tensor, batch: Batch, cache: LayerCache, narrow: torch.dtype) -> Iterator[Tensor]:
    """Attention by NumPy over a quantized cache's numbers, rounded to `narrow` and as they are."""
    tensors: dict[str, Any] = {
        name: x.cpu() for name, x in vars(batch).items() if isinstance(x, Tensor)
    }
    k, v, *scales = (x.cpu().float() for x in cache if x is not None)
    numbers = [x * scale[..., None] for x, scale in zip((k, v), scales, strict=True)]
    reference, here = NumpyBackend(torch.device("cpu")), replace(batch, **tensors)
    for kind in (narrow, torch.float32):
        plain = LayerCache(*(x.to(kind).float() for x in numbers))
        yield reference.attention(q.cpu().float(), here, plain)

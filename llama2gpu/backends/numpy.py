"""The reference: each op in NumPy, as plainly as it can be said.

Computes in float32 (or float64, for tests) whatever the type of the tensors it is handed, and
returns the type of its input.
"""

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from llama2gpu.backends.base import (
    CODE,
    TINY,
    Backend,
    Batch,
    LayerCache,
    Norm,
    Prepared,
    Probe,
    Rope,
)
from llama2gpu.ops.noise import uniform_words
from llama2gpu.ops.sample import SampleParams
from llama2gpu.quant import Weight

Array = np.ndarray[Any, np.dtype[Any]]


class NumpyBackend(Backend):
    """The reference backend; CPU only. `real` is the type it computes in."""

    name: ClassVar[str] = "numpy"

    def __init__(self, device: torch.device, real: type[np.floating[Any]] = np.float32) -> None:
        super().__init__(device)
        self.real = real

    @classmethod
    def probe(cls, device: torch.device) -> Probe:
        """CPU alone."""
        if device.type != "cpu":
            return Probe(False, f"it computes on the CPU, not on {device}; add --device cpu")
        root = np.sqrt(np.float32(4.0))
        return Probe(bool(root == 2.0), f"NumPy {np.__version__} on the CPU")

    def activation_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The type it computes in."""
        return torch.float64 if self.real is np.float64 else torch.float32

    def prepare(self, weight: Weight, op: str) -> Array:
        """The matrix in the type it computes in."""
        return self._array(weight.dequantize(self.activation_dtype(torch.float32)))

    def embed(self, tokens: Tensor, weight: Prepared) -> Tensor:
        """See `Backend.embed`."""
        return torch.from_numpy(weight[tokens.numpy()])

    def rms_norm(self, x: Tensor, norm: Norm) -> Tensor:
        """See `Backend.rms_norm`."""
        return self._like(self._normed(x, norm), x)

    def linear(self, x: Tensor, weight: Prepared) -> Tensor:
        """See `Backend.linear`."""
        return self._like(self._array(x) @ weight.T, x)

    def rope(self, x: Tensor, rope: Rope, positions: Tensor) -> Tensor:
        """See `Backend.rope`."""
        rows = positions.numpy()
        cos = self._array(rope.cos)[rows][:, None]  # [T, 1, head_dim / 2]
        sin = self._array(rope.sin)[rows][:, None]
        a = self._array(x)
        even, odd = a[..., 0::2], a[..., 1::2]
        turned = np.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
        return self._like(turned.reshape(a.shape), x)

    def silu_mul(self, x: Tensor) -> Tensor:
        """See `Backend.silu_mul`."""
        a = self._array(x)
        gate, up = a[:, 0::2], a[:, 1::2]
        # written with tanh, so that no gate overflows
        return self._like(gate * (0.5 + 0.5 * np.tanh(gate / 2)) * up, x)

    def write_kv(self, k: Tensor, v: Tensor, batch: Batch, cache: LayerCache) -> None:
        """See `Backend.write_kv`."""
        page, offset = np.divmod(batch.slots.numpy(), cache.k.shape[2])
        for new, stored, scale in ((k, cache.k, cache.k_scale), (v, cache.v, cache.v_scale)):
            if scale is None:
                _raw(stored)[page, :, offset] = _raw(new.to(stored.dtype))
            else:
                codes, scales = _quantized(new.float().numpy())
                _raw(stored)[page, :, offset], _raw(scale)[page, :, offset] = codes, scales

    def attend(self, q: Tensor, batch: Batch, cache: LayerCache) -> Tensor:
        """See `Backend.attend`."""
        queries = self._array(q)
        out = np.empty_like(queries)
        start = 0
        for s, (new, length) in enumerate(zip(batch.new_counts, batch.cached_counts, strict=True)):
            keys = self._cached(cache.k, cache.k_scale, batch, s, length)
            values = self._cached(cache.v, cache.v_scale, batch, s, length)
            out[start : start + new] = _causal(queries[start : start + new], keys, values)
            start += new
        return self._like(out, q)

    def sample(self, logits: Tensor, params: SampleParams) -> tuple[Tensor, Tensor]:
        """See `Backend.sample`: the same definition, one row after another."""
        rows = self._array(logits)
        tokens = [self._draw(row, s, params) for s, row in enumerate(rows)]
        peak = rows.max(axis=1, initial=-np.inf, keepdims=True)
        total = np.log(np.exp(rows - peak).sum(axis=1)) + peak[:, 0]
        chosen = torch.tensor(tokens, dtype=torch.int64)
        return chosen, torch.from_numpy(rows[range(len(tokens)), tokens] - total)

    def _draw(self, row: Array, s: int, params: SampleParams) -> int:
        row = self._penalized(row, s, params)
        temperature = float(params.temperature[s])
        if temperature == 0:
            return int(row.argmax())
        row = row / self.real(temperature)
        row = _truncated(row, int(params.top_k[s]), float(params.top_p[s]), float(params.min_p[s]))
        index = np.arange(row.size, dtype=np.int64)
        seed, draw = params.seed[s : s + 1].numpy(), params.draw[s : s + 1].numpy()
        u = ((uniform_words(seed, draw, index) >> 9) + 0.5) * 2.0**-23
        return int((row - np.log(-np.log(u))).argmax())

    def _penalized(self, row: Array, s: int, params: SampleParams) -> Array:
        if params.bias is not None:
            row = row + self._array(params.bias[s])
        if params.generated is None or params.prompted is None:
            return row
        count = params.generated[s].numpy()
        factor = float(params.repetition[s])
        seen = params.prompted[s].numpy() | (count > 0)
        row = np.where(seen, np.where(row > 0, row / factor, row * factor), row)
        row = row - float(params.presence[s]) * (count > 0)
        return np.asarray(row - float(params.frequency[s]) * count)

    def _normed(self, x: Tensor, norm: Norm) -> Array:
        a = self._array(x)
        square = np.mean(a * a, axis=-1, keepdims=True)
        scale = 1 / np.sqrt(square + self.real(norm.eps))
        return np.asarray(a * scale * self._array(norm.weight))

    def _cached(
        self, stored: Tensor, scale: Tensor | None, batch: Batch, s: int, length: int
    ) -> Array:
        """Keys or values of sequence s in order, [length, kv_heads, head_dim]."""
        _, kv_heads, page, head_dim = stored.shape
        pages = batch.block_table[s, : -(-length // page)].long()
        run = self._array(stored[pages])
        if scale is not None:
            run = run * self._array(scale[pages])[..., None]
        return run.transpose(0, 2, 1, 3).reshape(-1, kv_heads, head_dim)[:length]

    def _array(self, x: Tensor) -> Array:
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        return wide.detach().numpy().astype(self.real, copy=False)

    def _like(self, a: Array, x: Tensor) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(a)).to(x.dtype)


def _raw(x: Tensor) -> Array:
    """The tensor's memory as an array; NumPy lacks bfloat16, so 16-bit types go as int16."""
    array: Array = (x.view(torch.int16) if x.itemsize == 2 else x).numpy()
    return array


def _quantized(x: Array) -> tuple[Array, Array]:
    """Codes and scales of float32 vectors, as `Backend.write_kv` defines them."""
    scale = np.abs(x).max(axis=-1) / np.float32(CODE)
    scale[scale < TINY] = 0
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0, and what is no number
        codes = np.rint(x / scale[..., None])
        return np.where(scale[..., None] == 0, 0, codes).astype(np.int8), scale


def _causal(q: Array, keys: Array, values: Array) -> Array:
    """The last `new` of `length` positions attend to all before them; q [new, heads, head_dim]."""
    new, heads, head_dim = q.shape
    length, kv_heads, _ = keys.shape
    keys, values = (np.repeat(a, heads // kv_heads, axis=1) for a in (keys, values))
    scores = q.transpose(1, 0, 2) @ keys.transpose(1, 2, 0) / q.dtype.type(np.sqrt(head_dim))
    hidden = np.arange(length) > np.arange(length - new, length)[:, None]
    scores = np.where(hidden, -np.inf, scores)  # [heads, new, length]
    p = np.exp(scores - scores.max(axis=-1, initial=-np.inf, keepdims=True))
    out = p / p.sum(axis=-1, keepdims=True) @ values.transpose(1, 0, 2)
    return np.asarray(out.transpose(1, 0, 2))


def _truncated(row: Array, top_k: int, top_p: float, min_p: float) -> Array:
    if top_k:
        row = np.where(row >= np.sort(row)[-min(top_k, row.size)], row, -np.inf)
    p = np.exp(row - row.max())
    p = p / p.sum()
    falling = np.sort(p)[::-1]
    mass = np.concatenate([[0.0], np.cumsum(falling)])[np.searchsorted(-falling, -p)]
    kept = (((mass < top_p) | (top_p >= 1)) & (p >= min_p * p.max())) | (p == p.max())
    return np.where(kept, row, -np.inf)  # `mass` is the probability of what is strictly likelier

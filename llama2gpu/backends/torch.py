"""The ops in PyTorch: CPU, CUDA (and ROCm) and Apple's MPS, in float32, float16 and bfloat16.

Real numbers alone and no op that MPS lacks. What depends on the batch alone is computed at its
first layer and kept for the others: on a CPU each small op of a decode step runs cold, since the
weights have just streamed through every cache.
"""

from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llama2gpu.backends.base import Backend, Batch, LayerCache, Norm, Prepared, Probe, Rope
from llama2gpu.backends.cpu_row import cpu_linear, cpu_rms_norm_row
from llama2gpu.quant import Weight


class _Turns(NamedTuple):
    """Rows of the RoPE table for some positions, spread over the pairs: [T, 1, head_dim]."""

    rope: Rope
    positions: Tensor
    cos: Tensor  # cos 0, cos 0, cos 1, cos 1, …
    sin: Tensor  # −sin 0, sin 0, −sin 1, sin 1, …


class _Places(NamedTuple):
    """Where a batch writes and reads: pages and offsets of its slots, pages of each sequence."""

    batch: Batch
    pages: Tensor
    offsets: Tensor
    tables: list[Any]


class TorchBackend(Backend):
    """PyTorch on any device that it finds."""

    name: ClassVar[str] = "torch"

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._last_turns: _Turns | None = None
        self._last_places: _Places | None = None

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

    def prepare(self, weight: Weight, op: str) -> Tensor:
        """The matrix on the device; for `gate_up` all gate rows before all up rows."""
        data = weight.data.to(self.device)
        if op == "gate_up":
            data = data.view(-1, 2, data.shape[1]).transpose(0, 1).reshape(data.shape)
        return data.contiguous()

    def embed(self, tokens: Tensor, weight: Prepared) -> Tensor:
        """See `Backend.embed`."""
        return F.embedding(tokens, weight)

    def rms_norm(self, x: Tensor, norm: Norm) -> Tensor:
        """See `Backend.rms_norm`."""
        if len(x) == 1 and x.device.type == "cpu":
            return cpu_rms_norm_row(x, norm.weight, norm.eps)
        return F.rms_norm(x.float(), norm.weight.shape, norm.weight, norm.eps).to(x.dtype)

    def linear(self, x: Tensor, weight: Prepared) -> Tensor:
        """See `Backend.linear`."""
        return _linear(x, weight)

    def rope(self, x: Tensor, rope: Rope, positions: Tensor) -> Tensor:
        """See `Backend.rope`."""
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
        """See `Backend.gate_up`; halves multiply several times faster than interleaved columns."""
        gate, up = _linear(self.rms_norm(x, norm), weight).chunk(2, dim=1)
        return F.silu(gate) * up

    def write_kv(self, k: Tensor, v: Tensor, batch: Batch, cache: LayerCache) -> None:
        """See `Backend.write_kv`."""
        places = self._places(batch, cache)
        cache.k[places.pages, :, places.offsets] = k
        cache.v[places.pages, :, places.offsets] = v

    def attend(self, q: Tensor, batch: Batch, cache: LayerCache) -> Tensor:
        """See `Backend.attend`: sequences with one new token together, longer ones one by one."""
        tables = self._places(batch, cache).tables
        if len(batch.new_counts) > 1 and all(new == 1 for new in batch.new_counts):
            return _decode(q, batch, cache)
        if len(batch.new_counts) == 1:
            return _sequence(q, batch.cached_counts[0], tables[0], cache) if len(q) else q
        out, end = torch.empty_like(q), 0
        for new, length, table in zip(batch.new_counts, batch.cached_counts, tables, strict=True):
            if new:
                out[end : end + new] = _sequence(q[end : end + new], length, table, cache)
                end += new
        return out

    def _places(self, batch: Batch, cache: LayerCache) -> _Places:
        places = self._last_places
        if places is None or places.batch is not batch:
            page = cache.k.shape[2]
            tables = [
                _run(batch.block_table[s, : -(-length // page)])
                for s, length in enumerate(batch.cached_counts)
            ]
            pages, offsets = batch.slots // page, batch.slots % page
            places = self._last_places = _Places(batch, pages, offsets, tables)
        return places


def device_name(device: torch.device) -> str:
    """What a person calls the device: "cuda:0 (NVIDIA H200)"."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    return cpu_linear(x, weight) if x.device.type == "cpu" else F.linear(x, weight)


def _turns(rope: Rope, positions: Tensor) -> _Turns:
    cos, sin = rope.cos[positions], rope.sin[positions]  # [T, head_dim / 2]
    signed = torch.stack((-sin, sin), dim=-1).flatten(1)
    return _Turns(rope, positions, cos.repeat_interleave(2, dim=1)[:, None], signed[:, None])


def _run(table: Tensor) -> Any:
    """Page numbers as an index: a slice, which copies nothing, where a CPU sees one run."""
    if table.device.type == "cpu":
        pages = table.tolist()
        if pages and pages == list(range(pages[0], pages[0] + len(pages))):
            return slice(pages[0], pages[0] + len(pages))
    return table


def _decode(q: Tensor, batch: Batch, cache: LayerCache) -> Tensor:
    """One query for each of S sequences; the query heads of a key-value head make its rows."""
    _, kv_heads, page, _ = cache.k.shape
    pages = -(-max(batch.cached_counts) // page)
    table = batch.block_table[:, :pages]
    keys, values = (c[table].transpose(1, 2).flatten(2, 3) for c in cache)  # [S, kv, L, head_dim]
    seen = torch.arange(pages * page, device=q.device) < batch.lengths[:, None]
    rows = q.view(len(q), kv_heads, -1, q.shape[2])  # [S, kv, group, head_dim]
    out = F.scaled_dot_product_attention(rows, keys, values, attn_mask=seen[:, None, None])
    return out.flatten(1, 2)


def _sequence(q: Tensor, length: int, table: Any, cache: LayerCache) -> Tensor:
    """All new tokens of one sequence, [new, heads, head_dim] → the same shape."""
    kv_heads, (new, heads, head_dim) = cache.k.shape[1], q.shape
    keys, values = (c[table].transpose(0, 1).flatten(1, 2)[None, :, :length] for c in cache)
    group = heads // kv_heads
    if new == 1:
        rows = q.view(1, kv_heads, group, head_dim)
        return F.scaled_dot_product_attention(rows, keys, values).reshape(q.shape)
    if new == length:
        keys, values = (x.repeat_interleave(group, dim=1) for x in (keys, values))
        rows = q.transpose(0, 1)[None]  # [1, heads, new, head_dim]
        out = F.scaled_dot_product_attention(rows, keys, values, is_causal=True)
        return out[0].transpose(0, 1)
    rows = q.view(new, kv_heads, group, head_dim).permute(1, 2, 0, 3)  # [kv, group, new, head_dim]
    place = torch.arange(length, device=q.device)
    mask = (place <= place[length - new :, None]).repeat(group, 1)
    out = F.scaled_dot_product_attention(rows.flatten(1, 2)[None], keys, values, attn_mask=mask)
    return out.view(kv_heads, group, new, head_dim).permute(2, 0, 1, 3).flatten(1, 2)

"""The key-value cache in PyTorch: writing tokens into it, and attention over what it holds."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llama2gpu.backends.base import CODE, TINY, Batch, LayerCache


class Places(NamedTuple):
    """Where a batch writes and reads: pages and offsets of its slots, pages of each sequence."""

    batch: Batch
    pages: Tensor
    offsets: Tensor
    tables: list[Any]
    #: Page and offset of a lone token on the CPU: plain indices take half the time.
    single: tuple[int, int] | None


def find_places(batch: Batch, page: int, *, runs: bool) -> Places:
    """The places of a batch in a cache of `page` tokens a page.

    runs: consecutive pages become a slice, which copies nothing; finding out is cheap on the CPU.
    """
    tables: list[Any] = [
        batch.block_table[s, : -(-length // page)] for s, length in enumerate(batch.cached_counts)
    ]
    single = None
    if runs:
        tables = [_run(table) for table in tables]
        if batch.slots.shape[0] == 1:
            single = divmod(int(batch.slots), page)
    return Places(batch, batch.slots // page, batch.slots % page, tables, single)


def write(k: Tensor, v: Tensor, places: Places, cache: LayerCache) -> None:
    """See `Backend.write_kv`."""
    for new, stored, scale in ((k, cache.k, cache.k_scale), (v, cache.v, cache.v_scale)):
        if scale is not None:
            new, scale[places.pages, :, places.offsets] = quantize(new)
        if places.single is None:
            stored[places.pages, :, places.offsets] = new
        else:
            stored[places.single[0], :, places.single[1]] = new[0]


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 [T, kv_heads, head_dim] and scales float32 [T, kv_heads], as `write_kv` says."""
    wide = x.float()
    peak = wide.abs().amax(dim=-1)
    scale = peak / torch.full_like(peak, CODE)  # by a plain number a GPU multiplies with 1 / 127
    none = scale < TINY
    codes = (wide / scale.masked_fill(none, torch.inf)[..., None]).round()
    return codes.to(torch.int8), scale.masked_fill(none, 0.0)


def decode(q: Tensor, batch: Batch, cache: LayerCache) -> Tensor:
    """One query for each of S sequences; the query heads of a key-value head make its rows."""
    _, kv_heads, page, _ = cache.k.shape
    pages = -(-max(batch.cached_counts) // page)
    held = _held(cache, batch.block_table[:, :pages])
    seen = torch.arange(pages * page, device=q.device) < batch.lengths[:, None]
    rows = q.view(len(q), kv_heads, -1, q.shape[2])  # [S, kv, group, head_dim]
    return _few_rows(rows, held, seen[:, None, None]).flatten(1, 2)


def sequence(q: Tensor, length: int, table: Any, cache: LayerCache) -> Tensor:
    """All new tokens of one sequence, [new, heads, head_dim] → the same shape."""
    kv_heads, (new, heads, head_dim) = cache.k.shape[1], q.shape
    held = _held(cache, table, length)
    group = heads // kv_heads
    if new == 1:
        return _few_rows(q.view(kv_heads, group, head_dim)[None], held).reshape(q.shape)
    keys = _dequantized(held.k, held.k_scale, q.dtype)
    values = _dequantized(held.v, held.v_scale, q.dtype)
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


def _few_rows(rows: Tensor, held: LayerCache, seen: Tensor | None = None) -> Tensor:
    """Attention of few rows [S, kv_heads, group, head_dim] over what is held.

    The scales of a quantized cache go into scores and probabilities, which are few; all in
    float32, since codes times queries leave float16's range.
    """
    if held.k_scale is None or held.v_scale is None:
        return F.scaled_dot_product_attention(rows, held.k, held.v, attn_mask=seen)
    scores = rows.float() @ held.k.float().transpose(-1, -2)  # [S, kv, group, L]
    scores = scores * (held.k_scale * rows.shape[-1] ** -0.5).transpose(-1, -2)
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    p = scores.softmax(dim=-1) * held.v_scale.transpose(-1, -2)
    out: Tensor = p @ held.v.float()
    return out.to(rows.dtype)


def _held(cache: LayerCache, table: Any, length: int | None = None) -> LayerCache:
    """What lies on the pages, in order: [S, kv_heads, L, head_dim], scales [S, kv_heads, L, 1]."""

    def joined(x: Tensor) -> Tensor:
        pages = x[table]  # [S, pages, kv_heads, page, head_dim], without S for one sequence
        pages = pages if pages.dim() == 5 else pages[None]
        return pages.transpose(1, 2).flatten(2, 3)[:, :, :length]

    scales = (x if x is None else joined(x[..., None]) for x in (cache.k_scale, cache.v_scale))
    return LayerCache(joined(cache.k), joined(cache.v), *scales)


def _dequantized(x: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    return x if scale is None else x.float().mul_(scale).to(dtype)


def _run(table: Tensor) -> Any:
    """Page numbers as an index: a slice where they follow one another."""
    pages = table.tolist()
    if pages and pages == list(range(pages[0], pages[0] + len(pages))):
        return slice(pages[0], pages[0] + len(pages))
    return table

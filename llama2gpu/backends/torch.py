"""The ops in PyTorch: CPU, CUDA (and ROCm) and Apple's MPS, in float32, float16 and bfloat16.

Real numbers alone and no op that MPS lacks.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from llama2gpu.backends.base import Backend, Batch, LayerCache, Norm, Prepared, Probe, Rope
from llama2gpu.backends.cpu_linear import cpu_linear
from llama2gpu.quant import Weight


class TorchBackend(Backend):
    """PyTorch on any device that it finds."""

    name: ClassVar[str] = "torch"

    @classmethod
    def probe(cls, device: torch.device) -> Probe:
        """Runs a small matmul on the device."""
        try:
            x = torch.ones(2, 2, device=device)
            ok = float((x @ x).sum()) == 8.0
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            return Probe(False, f"PyTorch {torch.__version__} can't use {device}: {reason}")
        return Probe(ok, f"PyTorch {torch.__version__} on {device_name(device)}")

    def prepare(self, weight: Weight, op: str) -> Tensor:
        """The matrix on the device."""
        return weight.data.to(self.device).contiguous()

    def embed(self, tokens: Tensor, weight: Prepared) -> Tensor:
        """See `Backend.embed`."""
        return F.embedding(tokens, weight)

    def rms_norm(self, x: Tensor, norm: Norm) -> Tensor:
        """See `Backend.rms_norm`."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.eps)
        return (wide * scale * norm.weight).to(x.dtype)

    def linear(self, x: Tensor, weight: Prepared) -> Tensor:
        """See `Backend.linear`."""
        if x.device.type == "cpu":
            return cpu_linear(x, weight)
        return F.linear(x, weight)

    def rope(self, x: Tensor, rope: Rope, positions: Tensor) -> Tensor:
        """See `Backend.rope`."""
        cos = rope.cos[positions][:, None]  # [T, 1, head_dim / 2]
        sin = rope.sin[positions][:, None]
        even, odd = x[..., 0::2], x[..., 1::2]
        turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
        return turned.flatten(-2).to(x.dtype)

    def silu_mul(self, x: Tensor) -> Tensor:
        """See `Backend.silu_mul`."""
        return F.silu(x[:, 0::2]) * x[:, 1::2]

    def write_kv(self, k: Tensor, v: Tensor, batch: Batch, cache: LayerCache) -> None:
        """See `Backend.write_kv`."""
        size = cache.k.shape[2]
        page, offset = batch.slots // size, batch.slots % size
        cache.k[page, :, offset] = k
        cache.v[page, :, offset] = v

    def attend(self, q: Tensor, batch: Batch, cache: LayerCache) -> Tensor:
        """See `Backend.attend`: sequences with one new token together, longer ones one by one."""
        if len(batch.new_counts) > 1 and all(new == 1 for new in batch.new_counts):
            return _decode(q, batch, cache)
        out, end = torch.empty_like(q), 0
        for s, new in enumerate(batch.new_counts):
            if new:
                out[end : end + new] = _sequence(q[end : end + new], s, batch, cache)
                end += new
        return out


def device_name(device: torch.device) -> str:
    """What a person calls the device: "cuda:0 (NVIDIA H200)"."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


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


def _sequence(q: Tensor, s: int, batch: Batch, cache: LayerCache) -> Tensor:
    """All new tokens of sequence s, [new, heads, head_dim] → the same shape."""
    _, kv_heads, page, _ = cache.k.shape
    new, length = batch.new_counts[s], batch.cached_counts[s]
    table = batch.block_table[s, : -(-length // page)]
    keys, values = (c[table].transpose(0, 1).flatten(1, 2)[None, :, :length] for c in cache)
    group = q.shape[1] // kv_heads
    if new == length:
        keys, values = (x.repeat_interleave(group, dim=1) for x in (keys, values))
        rows = q.transpose(0, 1)[None]  # [1, heads, new, head_dim]
        out = F.scaled_dot_product_attention(rows, keys, values, is_causal=True)
        return out[0].transpose(0, 1)
    rows = q.view(new, kv_heads, group, -1).permute(1, 2, 0, 3)  # [kv, group, new, head_dim]
    mask = None
    if new > 1:
        place = torch.arange(length, device=q.device)
        mask = (place <= place[length - new :, None]).repeat(group, 1)
    out = F.scaled_dot_product_attention(rows.flatten(1, 2)[None], keys, values, attn_mask=mask)
    return out.view(kv_heads, group, new, -1).permute(2, 0, 1, 3).flatten(1, 2)

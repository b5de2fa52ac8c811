"""A Llama that trains: plain PyTorch, its parameters under their canonical names."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from llama2gpu.checkpoints import Checkpoint, tensor_shapes
from llama2gpu.config import Config
from llama2gpu.ops.rope import rope_table

_STD = 0.02


class Net(nn.Module):
    """Tokens `[batch, time]` to the mean cross-entropy of their successors.

    `state_dict` has the names, shapes and row orders of `llama2gpu.checkpoints.base`. Parameters
    are float32; the matrices are drawn from N(0, 0.02²), those that end in the residual stream
    from N(0, 0.02² / (2 · layers)), as in GPT-2 (Radford et al., 2019).
    """

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, config: Config, context: int, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.embed = _drawn((config.vocab, config.dim), _STD, generator)
        self.layers = nn.ModuleList(Layer(config, generator) for _ in range(config.layers))
        self.norm = nn.Parameter(torch.ones(config.dim))
        if not config.tied:
            self.output = _drawn((config.vocab, config.dim), _STD, generator)
        cos, sin = rope_table(config, context)
        self.register_buffer("cos", cos.repeat_interleave(2, 1), persistent=False)
        self.register_buffer("sin", sin.repeat_interleave(2, 1), persistent=False)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean loss, a float32 scalar; both arguments are int64 `[batch, time]`."""
        x = F.embedding(tokens, self.embed)
        cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x, cos, sin)
        x = F.rms_norm(x, (self.config.dim,), self.norm, self.config.norm_eps)
        logits = F.linear(x, self.embed if self.config.tied else self.output)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def load(self, checkpoint: Checkpoint) -> None:
        """Takes the weights of an open checkpoint of the same configuration."""
        named = dict(self.named_parameters())
        with torch.no_grad():
            for name, _ in tensor_shapes(self.config):
                named[name].copy_(checkpoint.read(name))

    def matrices(self) -> Iterator[nn.Parameter]:
        """The parameters that decay."""
        return (p for p in self.parameters() if p.dim() == 2)

    def vectors(self) -> Iterator[nn.Parameter]:
        """The gains of the norms, which do not."""
        return (p for p in self.parameters() if p.dim() == 1)


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, config: Config, generator: torch.Generator) -> None:
        super().__init__()
        c, ends = config, _STD / math.sqrt(2 * config.layers)
        self.config = config
        self.attention_norm = nn.Parameter(torch.ones(c.dim))
        self.wq = _drawn((c.q_rows, c.dim), _STD, generator)
        self.wk = _drawn((c.kv_rows, c.dim), _STD, generator)
        self.wv = _drawn((c.kv_rows, c.dim), _STD, generator)
        self.wo = _drawn((c.dim, c.q_rows), ends, generator)
        self.ffn_norm = nn.Parameter(torch.ones(c.dim))
        self.w1 = _drawn((c.hidden, c.dim), _STD, generator)
        self.w2 = _drawn((c.dim, c.hidden), ends, generator)
        self.w3 = _drawn((c.hidden, c.dim), _STD, generator)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """The residual stream `[batch, time, dim]` after attention and feed-forward."""
        c = self.config
        h = F.rms_norm(x, (c.dim,), self.attention_norm, c.norm_eps)
        x = x + F.linear(self._attend(h, cos, sin), self.wo)
        h = F.rms_norm(x, (c.dim,), self.ffn_norm, c.norm_eps)
        return x + F.linear(F.silu(F.linear(h, self.w1)) * F.linear(h, self.w3), self.w2)

    def _attend(self, h: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        size, group = self.config.head_dim, self.config.heads // self.config.kv_heads
        q, k, v = (
            F.linear(h, w).view(*h.shape[:2], -1, size).transpose(1, 2)
            for w in (self.wq, self.wk, self.wv)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = (t.repeat_interleave(group, 1) for t in (k, v))
        out: torch.Tensor = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return out.transpose(1, 2).flatten(2)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """RoPE of adjacent pairs; `x` is `[..., time, head_dim]`, the tables `[time, head_dim]`."""
    even, odd = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack((-odd, even), -1).flatten(-2)
    return (x * cos + turned * sin).to(x.dtype)


def _drawn(shape: tuple[int, int], std: float, generator: torch.Generator) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape).normal_(0.0, std, generator=generator))

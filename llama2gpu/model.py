"""The model: a Llama as the list of ops that it is."""

from collections.abc import Iterable

import torch

from llama2gpu.backends.base import Backend, Batch, LayerCache, Norm, Rope
from llama2gpu.config import Config
from llama2gpu.ops.rope import rope_table
from llama2gpu.ops.sample import Drawn, SampleParams
from llama2gpu.weights import Weights


class Model:
    """A Llama on one backend.

    dtype: of the weights; the backend says what type its activations take with it.
    context: positions that a sequence may have, at most; the trained context where not given. The
        RoPE table grows with the positions in use: a header may promise millions.
    """

    def __init__(
        self,
        config: Config,
        weights: Weights,
        backend: Backend,
        dtype: torch.dtype,
        context: int | None = None,
    ) -> None:
        self.config, self.weights, self.backend = config, weights, backend
        self.context = context or config.context
        self.dtype, self.activations = dtype, backend.activation_dtype(dtype)
        self.rope = self._rope(min(self.context, 2048))

    def forward(
        self, tokens: torch.Tensor, batch: Batch, cache: Iterable[LayerCache]
    ) -> torch.Tensor:
        """Hidden states [T, dim] of the new tokens int64 [T]; their keys and values are cached."""
        reach = max(batch.cached_counts, default=0)
        if reach > len(self.rope.cos):
            self.rope = self._rope(min(self.context, 2 * reach))
        x = self.backend.embed(tokens, self.weights.embed).to(self.activations)
        for weights, kv in zip(self.weights.layers, cache, strict=True):
            x = self.backend.layer(x, weights, self.config.norm_eps, self.rope, batch, kv)
        return x

    def _rope(self, context: int) -> Rope:
        cos, sin = rope_table(self.config, context)
        return Rope(cos.to(self.backend.device), sin.to(self.backend.device))

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Float32 logits [S, vocab] of hidden states [S, dim]."""
        return self.backend.logits(x, self._norm, self.weights.output)

    def draw(self, x: torch.Tensor, params: SampleParams) -> Drawn:
        """The next tokens of hidden states [S, dim], and the logits that they were drawn from."""
        return self.backend.draw(x, self._norm, self.weights.output, params)

    @property
    def _norm(self) -> Norm:
        return Norm(self.weights.norm, self.config.norm_eps)

"""Quantizing with the inputs in view: statistics from a text, taken on the backend, layer by layer.

Each layer runs on what the layers before it, quantized already, make of the text. The second
moments of what its matrices read are all that the methods need (GPTQ, Frantar et al. 2022; AWQ, Lin
et al. 2023); `quant`, which knows no model, does the rest.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from llama2gpu.backends.base import Backend, Batch, LayerCache, Norm, Rope
from llama2gpu.batch import Span, build_batch
from llama2gpu.cache import PAGE
from llama2gpu.config import Config
from llama2gpu.errors import RequestError
from llama2gpu.ops.rope import rope_table
from llama2gpu.quant import Dense, QuantSpec, Weight, awq_scale
from llama2gpu.quantizer import Outcome, RoundingQuantizer, check_layer
from llama2gpu.weights import LAYER_OPS, LayerWeights

#: Tokens of a calibration window at most, of the whole calibration, and of one pass.
WINDOW, TOKENS, AT_ONCE = 512, 16384, 2048

Moments = dict[str, torch.Tensor | None]


def calibration_windows(ids: Sequence[int], context: int) -> list[list[int]]:
    """The first `TOKENS` ids in windows of one length, the context's at most.

    Raises `RequestError` where they fill no window.
    """
    length = min(context, WINDOW)
    windows = [list(ids[n : n + length]) for n in range(0, len(ids) - length + 1, length)]
    if not windows:
        raise RequestError(
            f"the calibration text has {len(ids)} tokens, fewer than the {length} of one window: "
            "give a longer text, ten times that or more"
        )
    return windows[: max(TOKENS // length, 1)]


class CalibratedQuantizer(RoundingQuantizer):
    """Quantizes with gptq or awq.

    windows: token ids of the calibration text, all of one length. backend: runs the layers.
    """

    def __init__(
        self,
        spec: QuantSpec,
        config: Config,
        backend: Backend,
        windows: Sequence[Sequence[int]],
        report: Callable[[Outcome], None] = lambda outcome: None,
        *,
        errors: bool = False,
    ) -> None:
        super().__init__(spec, config, report, errors=errors)
        self.backend, self.length = backend, len(windows[0])
        self.ids = torch.tensor(windows, dtype=torch.int64, device=backend.device)
        self.x, self.stored = torch.empty(0), torch.float32  # until the embedding is seen
        rope = rope_table(config, self.length)
        self.rope = Rope(*(table.to(backend.device) for table in rope))

    @torch.inference_mode()
    def embed(self, table: Weight) -> None:
        """See `checkpoints.weights.Quantizer`."""
        super().embed(table)
        assert isinstance(table, Dense)
        self.stored = table.data.dtype
        kind = self.backend.activation_dtype(self.stored)
        prepared = self.backend.prepare(table, "embed")
        self.x = self.backend.embed(self.ids.flatten(), prepared).to(kind)

    @torch.inference_mode()
    def layer(self, n: int, layer: LayerWeights) -> LayerWeights:
        """See `checkpoints.weights.Quantizer`."""
        check_layer(n, layer)
        moments: Moments = {name: self._zeros(getattr(layer, name).shape[1]) for name in LAYER_OPS}
        self._run(layer, moments)
        if self.spec.method == "awq":
            layer, moments = self._scaled(layer, moments)
        quantized = self.rounded(n, layer, moments)
        self.x = self._run(quantized, None)
        return quantized

    @torch.inference_mode()
    def output(self, norm: torch.Tensor, head: Weight, tied: bool) -> tuple[torch.Tensor, Weight]:
        """See `checkpoints.weights.Quantizer`."""
        self.check_output(norm, head)
        if not self.spec.head:
            return norm, head
        moments = self._zeros(head.shape[1])
        for x in torch.split(self.x, AT_ONCE):
            self._add(moments, self.backend.rms_norm(x, Norm(norm, self.config.norm_eps)))
        group = self.group("output", head.shape[1])
        if self.spec.method == "awq" and not tied and group is not None:
            assert isinstance(head, Dense)
            scale = awq_scale(head.data, self.spec, group, moments)
            norm, scale = _divided(norm, scale, self.stored)
            head = Dense(head.data.float() * scale)
            moments = moments / torch.outer(scale, scale)
        return norm, self.head(head, moments)

    def _zeros(self, size: int) -> torch.Tensor:
        return torch.zeros(size, size, device=self.x.device)

    def _run(self, layer: LayerWeights, moments: Moments | None) -> torch.Tensor:
        """What a layer makes of the text; adds up x·xᵀ of what its matrices read, if asked."""
        b, eps = self.backend, self.config.norm_eps
        w = {name: b.prepare(getattr(layer, name), op) for name, op in LAYER_OPS.items()}
        attention, ffn = Norm(layer.attention_norm, eps), Norm(layer.ffn_norm, eps)
        out = []
        for x in torch.split(self.x, self._windows_at_once * self.length):
            batch, cache = self._place(len(x) // self.length)
            a = b.attention(b.qkv(x, attention, w["w_qkv"], self.rope, batch, cache), batch, cache)
            middle = b.project_add(a, w["w_o"], x)
            h = b.gate_up(middle, ffn, w["w_13"])
            if moments is None:
                out.append(b.project_add(h, w["w_2"], middle))
                continue
            inputs = (b.rms_norm(x, attention), a, b.rms_norm(middle, ffn), h)
            for name, seen in zip(LAYER_OPS, inputs, strict=True):
                self._add(moments[name], seen)
        return torch.cat(out) if out else self.x

    @property
    def _windows_at_once(self) -> int:
        return max(AT_ONCE // self.length, 1)

    def _place(self, count: int) -> tuple[Batch, LayerCache]:
        """A batch of `count` windows and an empty cache for one layer."""
        pages, c = -(-self.length // PAGE), self.config
        spans = [Span(range(s * pages, (s + 1) * pages), 0, self.length) for s in range(count)]
        shape = (count * pages, c.kv_heads, PAGE, c.head_dim)
        cache = LayerCache(*(self.x.new_zeros(shape) for _ in "kv"))
        return build_batch(spans, PAGE, self.backend.device), cache

    def _add(self, moments: torch.Tensor | None, seen: torch.Tensor) -> None:
        assert moments is not None
        wide = seen.float()
        moments.addmm_(wide.T, wide, alpha=1 / len(self.x))

    def _scaled(self, layer: LayerWeights, moments: Moments) -> tuple[LayerWeights, Moments]:
        """AWQ's factors, multiplied into each matrix and divided out of what makes its inputs."""
        found = dict(moments)
        for name in ("w_o", "w_2", "w_qkv", "w_13"):  # the first two change the other two's rows
            seen = moments[name]
            assert seen is not None
            group = self.group(name, len(seen))
            if group is None:
                continue
            matrix: torch.Tensor = getattr(layer, name).data
            constrain = self._alike_in_heads if name == "w_o" else None
            scale = awq_scale(matrix, self.spec, group, seen, constrain)
            layer, scale = self._divided_before(layer, name, scale)
            changed: dict[str, Any] = {name: Dense(matrix.float() * scale)}
            layer = replace(layer, **changed)
            found[name] = seen / torch.outer(scale, scale)
        return layer, found

    def _divided_before(
        self, layer: LayerWeights, name: str, scale: torch.Tensor
    ) -> tuple[LayerWeights, torch.Tensor]:
        """The layer with a matrix's inputs divided by `scale`; and the scale after rounding."""
        c = self.config
        if name == "w_qkv":
            norm, scale = _divided(layer.attention_norm, scale, self.stored)
            return replace(layer, attention_norm=norm), scale
        if name == "w_13":
            norm, scale = _divided(layer.ffn_norm, scale, self.stored)
            return replace(layer, ffn_norm=norm), scale
        if name == "w_2":
            w_13 = layer.w_13.data.float()
            w_13[1::2] /= scale[:, None]
            return replace(layer, w_13=Dense(w_13)), scale
        w_qkv = layer.w_qkv.data.float()
        one = scale.view(c.kv_heads, -1, c.head_dim)[:, 0].flatten()
        w_qkv[c.q_rows + c.kv_rows :] /= one[:, None]
        return replace(layer, w_qkv=Dense(w_qkv)), scale

    def _alike_in_heads(self, scale: torch.Tensor) -> torch.Tensor:
        """The scale made equal for the query heads that read one value head."""
        heads = scale.log().view(self.config.kv_heads, -1, self.config.head_dim)
        return heads.mean(1, keepdim=True).expand_as(heads).flatten().exp()


def _divided(
    norm: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """A norm over `scale`, rounded to `dtype` as files hold it; and the scale that this is."""
    divided = (norm / scale).to(dtype).float()
    return divided, torch.where(divided == 0, torch.ones_like(scale), norm / divided)

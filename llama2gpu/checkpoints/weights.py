"""From named tensors to the canonical weights of a model, one layer at a time."""

from collections.abc import Callable
from typing import Any, Protocol

import torch

from llama2gpu.checkpoints.base import LAYER_MATRICES, Checkpoint
from llama2gpu.memory import give_back
from llama2gpu.quant import Dense, Weight, join_rows
from llama2gpu.weights import LAYER_OPS, LayerWeights, Weights

#: Takes a canonical weight and the op that reads it; returns what the model keeps, with `nbytes`.
Place = Callable[[Weight, str], Any]

#: Called after each placed matrix with the bytes read so far and in all.
Progress = Callable[[int, int], None]


class Quantizer(Protocol):
    """Makes canonical weights quantized ones; it sees a model from its embedding to its head."""

    def embed(self, table: Weight) -> None:
        """Looks at the embedding, before the layers."""

    def layer(self, n: int, layer: LayerWeights) -> LayerWeights:
        """Layer n with other matrices and norms, of the same meaning together."""

    def output(self, norm: torch.Tensor, head: Weight, tied: bool) -> tuple[torch.Tensor, Weight]:
        """The last norm and the output matrix, which is the embedding too where they are tied."""


class CanonicalReader:
    """The canonical weights of a checkpoint, a part at a time, matrices in one type.

    dtype: of dense matrices; quantized ones stay as they are stored.
    """

    def __init__(
        self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device | None = None
    ) -> None:
        self.checkpoint, self.config, self.dtype = checkpoint, checkpoint.config, dtype
        # one block: small tensors kept between large short-lived ones would leave holes
        self._norms = torch.empty(
            2 * self.config.layers + 1, self.config.dim, dtype=torch.float32, device=device
        )

    def matrix(self, name: str) -> Weight:
        """The embedding or the output matrix, by its canonical name."""
        if self.checkpoint.kind(name) != "dense":
            return self._typed(self.checkpoint.weight(name))
        data = torch.empty(self.config.vocab, self.config.dim, dtype=self.dtype)
        self.checkpoint.read_into(name, data)
        return Dense(data)

    def norm(self) -> torch.Tensor:
        """The last norm, float32."""
        return self._norm("norm", -1)

    def layer(self, n: int) -> LayerWeights:
        """Layer n."""
        prefix = f"layers.{n}."
        kinds = {self.checkpoint.kind(prefix + name) for name in LAYER_MATRICES}
        dense = kinds == {"dense"}
        w_qkv, w_o, w_13, w_2 = self._dense(prefix) if dense else self._joined(prefix)
        return LayerWeights(
            attention_norm=self._norm(prefix + "attention_norm", 2 * n),
            w_qkv=w_qkv,
            w_o=w_o,
            ffn_norm=self._norm(prefix + "ffn_norm", 2 * n + 1),
            w_13=w_13,
            w_2=w_2,
        )

    def _dense(self, prefix: str) -> list[Weight]:
        """The four matrices of a layer, each read to its place."""
        config, read_into = self.config, self.checkpoint.read_into
        qkv, wo, w2 = self._space(
            (config.q_rows + 2 * config.kv_rows, config.dim),
            (config.dim, config.q_rows),
            (config.dim, config.hidden),
        )
        (w13,) = self._space((2 * config.hidden, config.dim))  # alone: a backend may reorder it
        ends = (0, config.q_rows, config.q_rows + config.kv_rows, len(qkv))
        for name, start, end in zip(("wq", "wk", "wv"), ends, ends[1:], strict=False):
            read_into(prefix + name, qkv[start:end])
        read_into(prefix + "w1", w13[0::2])
        read_into(prefix + "w3", w13[1::2])
        read_into(prefix + "wo", wo)
        read_into(prefix + "w2", w2)
        return [Dense(qkv), Dense(wo), Dense(w13), Dense(w2)]

    def _joined(self, prefix: str) -> list[Weight]:
        """The same where some are quantized: rows are joined and interleaved, never floats."""
        weight = self.checkpoint.weight
        qkv = join_rows([weight(prefix + name) for name in ("wq", "wk", "wv")])
        halves = join_rows([weight(prefix + name) for name in ("w1", "w3")])
        turns = torch.arange(halves.shape[0]).view(2, -1).T.flatten()
        found = qkv, weight(prefix + "wo"), halves.rows(turns), weight(prefix + "w2")
        return [self._typed(w) for w in found]

    def _typed(self, weight: Weight) -> Weight:
        return Dense(weight.data.to(self.dtype)) if isinstance(weight, Dense) else weight

    def _space(self, *shapes: tuple[int, int]) -> list[torch.Tensor]:
        """Matrices side by side in one block, which leaves no holes among small allocations."""
        block = torch.empty(sum(rows * columns for rows, columns in shapes), dtype=self.dtype)
        sizes = [rows * columns for rows, columns in shapes]
        parts = torch.split(block, sizes)
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def _norm(self, name: str, row: int) -> torch.Tensor:
        return self._norms[row].copy_(self.checkpoint.read(name))


def load_weights(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    place: Place,
    device: torch.device | None = None,
    progress: Progress = lambda done, total: None,
    quantizer: Quantizer | None = None,
) -> Weights:
    """Reads every tensor once, joins them to the canonical matrices, and places them.

    Only the layer at hand is in memory beside what is placed. dtype: of dense matrices; a quantizer
    sees the stored one. `device` takes the norms.
    """
    return _Loader(checkpoint, dtype, place, device, progress, quantizer).load()


class _Loader:
    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        place: Place,
        device: torch.device | None,
        progress: Progress,
        quantizer: Quantizer | None,
    ) -> None:
        read_as = dtype if quantizer is None else checkpoint.dtype
        self.reader = CanonicalReader(checkpoint, read_as, device)
        self.config, self.dtype, self.put = checkpoint.config, dtype, place
        self.device = device
        self.progress, self.quantizer = progress, quantizer
        self.nbytes = 0
        self.done, self.total = 0, checkpoint.config.parameters * dtype.itemsize

    def load(self) -> Weights:
        config, quantizer = self.config, self.quantizer
        table = self.reader.matrix("embed")
        if quantizer is not None:
            quantizer.embed(table)
        # a tied embedding waits for what becomes of the head
        embed = None if config.tied and quantizer is not None else self._place(table, "embed")
        layers = tuple(self._layer(n) for n in range(config.layers))
        norm, head = self.reader.norm(), table if config.tied else self.reader.matrix("output")
        if quantizer is not None:
            norm, head = quantizer.output(norm, head, config.tied)
        if config.tied and self.device is not None:
            head = head.to(self.device)  # once for both
        output = self._place(head, "logits", counted=True)
        embed = self._place(head, "embed") if embed is None else embed
        give_back()
        return Weights(embed, layers, norm, output, self.nbytes)

    def _layer(self, n: int) -> LayerWeights:
        layer = self.reader.layer(n)
        if self.quantizer is not None:
            layer = self.quantizer.layer(n, layer)
        placed = {
            name: self._place(getattr(layer, name), op, counted=True)
            for name, op in LAYER_OPS.items()
        }
        give_back()  # what was taken apart would leave holes between what is kept
        return LayerWeights(attention_norm=layer.attention_norm, ffn_norm=layer.ffn_norm, **placed)

    def _place(self, weight: Weight, op: str, *, counted: bool = False) -> Any:
        if isinstance(weight, Dense):
            data = weight.data.to(self.dtype)
            if self.quantizer is not None and data.untyped_storage().nbytes() > data.nbytes:
                data = data.clone()  # its neighbours in memory are quantized and must go
            weight = Dense(data)
        self.done += weight.shape[0] * weight.shape[1] * self.dtype.itemsize
        placed = self.put(weight, op)
        self.nbytes += placed.nbytes if counted else 0
        self.progress(min(self.done, self.total), self.total)
        return placed

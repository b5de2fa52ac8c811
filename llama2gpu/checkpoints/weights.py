"""From named tensors to the canonical weights of a model, one layer at a time."""

from collections.abc import Callable
from typing import Any

import torch

from llama2gpu.checkpoints.base import Checkpoint
from llama2gpu.quant import Dense, Weight
from llama2gpu.weights import LayerWeights, Weights

#: Takes a canonical weight and the op that reads it; returns what the model keeps, with `nbytes`.
Place = Callable[[Weight, str], Any]

#: Called after each placed matrix with the bytes read so far and in all.
Progress = Callable[[int, int], None]


def load_weights(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    place: Place,
    device: torch.device | None = None,
    progress: Progress = lambda done, total: None,
) -> Weights:
    """Reads every tensor once, joins them to the canonical matrices in `dtype`, and places them.

    Only the layer at hand is in memory beside what is placed. `device` takes the norms.
    """
    return _Loader(checkpoint, dtype, place, device or torch.device("cpu"), progress).load()


class _Loader:
    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        place: Place,
        device: torch.device,
        progress: Progress,
    ) -> None:
        self.checkpoint, self.dtype, self.put = checkpoint, dtype, place
        self.device, self.progress = device, progress
        config = checkpoint.config
        # one block: small tensors kept between large short-lived ones would leave holes
        self.norms = torch.empty(
            2 * config.layers + 1, config.dim, dtype=torch.float32, device=self.device
        )
        self.nbytes = 0
        self.read, self.total = 0, checkpoint.config.parameters * dtype.itemsize

    def load(self) -> Weights:
        config = self.checkpoint.config
        table = self._matrix("embed")
        embed = self._place(table, "embed")
        layers = tuple(self._layer(n) for n in range(config.layers))
        if config.tied:
            output = self.put(table, "logits")
            self.nbytes += output.nbytes
        else:
            output = self._place(self._matrix("output"), "logits", counted=True)
        return Weights(embed, layers, self._norm("norm", -1), output, self.nbytes)

    def _layer(self, n: int) -> LayerWeights:
        config, prefix = self.checkpoint.config, f"layers.{n}."
        qkv, wo, w2 = self._space(
            (config.q_rows + 2 * config.kv_rows, config.dim),
            (config.dim, config.q_rows),
            (config.dim, config.hidden),
        )
        (w13,) = self._space((2 * config.hidden, config.dim))  # alone: a backend may reorder it
        ends = (0, config.q_rows, config.q_rows + config.kv_rows, len(qkv))
        for name, start, end in zip(("wq", "wk", "wv"), ends, ends[1:], strict=False):
            qkv[start:end] = self.checkpoint.read(prefix + name)
        w13[0::2] = self.checkpoint.read(prefix + "w1")
        w13[1::2] = self.checkpoint.read(prefix + "w3")
        wo.copy_(self.checkpoint.read(prefix + "wo"))
        w2.copy_(self.checkpoint.read(prefix + "w2"))
        return LayerWeights(
            attention_norm=self._norm(prefix + "attention_norm", 2 * n),
            w_qkv=self._place(Dense(qkv), "qkv", counted=True),
            w_o=self._place(Dense(wo), "project_add", counted=True),
            ffn_norm=self._norm(prefix + "ffn_norm", 2 * n + 1),
            w_13=self._place(Dense(w13), "gate_up", counted=True),
            w_2=self._place(Dense(w2), "project_add", counted=True),
        )

    def _matrix(self, name: str) -> Dense:
        stored = self.checkpoint.read(name)
        return Dense(stored.to(self.dtype, copy=True))

    def _space(self, *shapes: tuple[int, int]) -> list[torch.Tensor]:
        """Matrices side by side in one block, which leaves no holes among small allocations."""
        block = torch.empty(sum(rows * columns for rows, columns in shapes), dtype=self.dtype)
        sizes = [rows * columns for rows, columns in shapes]
        parts = torch.split(block, sizes)
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def _norm(self, name: str, row: int) -> torch.Tensor:
        return self.norms[row].copy_(self.checkpoint.read(name))

    def _place(self, weight: Weight, op: str, *, counted: bool = False) -> Any:
        self.read += weight.nbytes
        placed = self.put(weight, op)
        self.nbytes += placed.nbytes if counted else 0
        self.progress(min(self.read, self.total), self.total)
        return placed

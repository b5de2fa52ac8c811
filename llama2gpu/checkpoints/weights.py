"""From named tensors to the canonical weights of a model, one matrix at a time."""

from collections.abc import Callable
from typing import Any

import torch

from llama2gpu.checkpoints.base import Checkpoint
from llama2gpu.quant import Dense, Weight
from llama2gpu.weights import LayerWeights, Weights

#: Takes a canonical weight and the op that reads it; returns what the model keeps.
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

    Only the matrix at hand is in memory beside what is placed. `device` takes the norms.
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
        self.nbytes = 0
        self.read, self.total = 0, checkpoint.config.parameters * dtype.itemsize

    def load(self) -> Weights:
        config = self.checkpoint.config
        table = self._matrix("embed")
        embed = self._place(table, "embed")
        layers = tuple(self._layer(n) for n in range(config.layers))
        if config.tied:
            self.nbytes += table.nbytes
            output = self.put(table, "logits")
        else:
            output = self._place(self._matrix("output"), "logits", counted=True)
        return Weights(embed, layers, self._norm("norm"), output, self.nbytes)

    def _layer(self, n: int) -> LayerWeights:
        config, prefix = self.checkpoint.config, f"layers.{n}."
        hidden, dim = config.hidden, config.dim
        qkv = self._new(config.q_rows + 2 * config.kv_rows, dim)
        end = 0
        for name, rows in (("wq", config.q_rows), ("wk", config.kv_rows), ("wv", config.kv_rows)):
            qkv[end : end + rows] = self.checkpoint.read(prefix + name)
            end += rows
        w_qkv = self._place(Dense(qkv), "qkv", counted=True)
        del qkv
        w_o = self._place(self._matrix(prefix + "wo"), "project_add", counted=True)
        gates = self._new(hidden, 2, dim)
        gates[:, 0] = self.checkpoint.read(prefix + "w1")
        gates[:, 1] = self.checkpoint.read(prefix + "w3")
        w_13 = self._place(Dense(gates.view(2 * hidden, dim)), "gate_up", counted=True)
        del gates
        w_2 = self._place(self._matrix(prefix + "w2"), "project_add", counted=True)
        norms = (self._norm(prefix + "attention_norm"), self._norm(prefix + "ffn_norm"))
        return LayerWeights(norms[0], w_qkv, w_o, norms[1], w_13, w_2)

    def _matrix(self, name: str) -> Dense:
        stored = self.checkpoint.read(name)
        return Dense(self._new(*stored.shape).copy_(stored))

    def _norm(self, name: str) -> torch.Tensor:
        return self.checkpoint.read(name).to(self.device, torch.float32, copy=True)

    def _place(self, weight: Weight, op: str, *, counted: bool = False) -> Any:
        self.nbytes += weight.nbytes if counted else 0
        self.read += weight.nbytes
        placed = self.put(weight, op)
        self.progress(min(self.read, self.total), self.total)
        return placed

    def _new(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=self.dtype)

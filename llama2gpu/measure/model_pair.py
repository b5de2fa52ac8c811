"""One checkpoint on two backends at once: the same weights, prepared by each."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch

from llama2gpu.api import DEFAULT_MODEL
from llama2gpu.backends import choose_backend
from llama2gpu.backends.base import Backend, Prepared
from llama2gpu.build import weight_type
from llama2gpu.checkpoints import Checkpoint, open_checkpoint
from llama2gpu.checkpoints.weights import load_weights
from llama2gpu.model import Model
from llama2gpu.open_quantizer import open_quantizer, read_spec
from llama2gpu.quant import QuantSpec, Weight
from llama2gpu.quantizer import Outcome, left_dense
from llama2gpu.tokenizer import Tokenizer, tokenizer_of
from llama2gpu.weights import LayerWeights, Weights, dtype_name


@dataclass(frozen=True)
class ModelPair:
    """A checkpoint's model on backend a and on backend b.

    dtype: of the weights, as `api.load` names it. quant: how they are quantized, None where they
    are not. left_dense: as in `Quality`.
    """

    checkpoint: Checkpoint
    tokenizer: Tokenizer
    a: Model
    b: Model
    dtype: str
    quant: str | None
    left_dense: str | None


def load_pair(
    a: str,
    b: str,
    model: str | Path = DEFAULT_MODEL,
    *,
    tokenizer: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    quant: str | QuantSpec = "none",
    calibration: str | Path | None = None,
    rope_theta: float | None = None,
    rope_scaling: str | None = None,
    norm_eps: float | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ModelPair:
    """Loads a checkpoint once, for the backends of these names; keywords as for `api.load`.

    dtype: of both; "auto" is what suits the device that is no CPU, where one of them is on such.
    What is calibrated is so on b. Raises a `Llama2GPUError` of one line.
    """
    first, second = choose_backend(a, device), choose_backend(b, device)
    spec = read_spec(quant, calibration)
    checkpoint = open_checkpoint(
        model, rope_theta=rope_theta, rope_scaling=rope_scaling, norm_eps=norm_eps
    )
    words = tokenizer_of(checkpoint, tokenizer)
    outcomes: list[Outcome] = []
    quantizer = None
    if spec is not None:
        quantizer = open_quantizer(checkpoint, spec, second, words, calibration, outcomes.append)
    places = [server.device for server in (first, second) if server.device.type != "cpu"]
    place = places[0] if places else second.device
    kind = weight_type(checkpoint, place, dtype)
    both = _Both(first, second)
    weights = load_weights(checkpoint, kind, both.prepare, second.device, progress, quantizer)
    kinds = dict.fromkeys(outcome.kind for outcome in outcomes if outcome.quantized)

    def built(n: int, server: Backend) -> Model:
        return Model(checkpoint.config, _part(weights, n, server.device), server, kind)

    return ModelPair(
        checkpoint,
        words,
        built(0, first),
        built(1, second),
        dtype=dtype_name(kind),
        quant=checkpoint.quantization or " and ".join(kinds) or None,
        left_dense=left_dense(outcomes),
    )


class _Prepared(NamedTuple):
    a: Prepared
    b: Prepared

    @property
    def nbytes(self) -> int:
        return int(self.b.nbytes)


class _Both:
    def __init__(self, a: Backend, b: Backend) -> None:
        self.a, self.b = a, b

    def prepare(self, weight: Weight, op: str) -> _Prepared:
        return _Prepared(self.a.prepare(weight, op), self.b.prepare(weight, op))


def _part(weights: Weights, n: int, device: torch.device) -> Weights:
    """The weights as backend n of the two prepared them."""

    def moved(value: Any) -> Any:
        return value.to(device) if isinstance(value, torch.Tensor) else value[n]

    layers = tuple(
        LayerWeights(**{field.name: moved(getattr(layer, field.name)) for field in fields(layer)})
        for layer in weights.layers
    )
    w = weights
    return Weights(w.embed[n], layers, moved(w.norm), w.output[n], w.nbytes)

"""Quantizing a whole model as it is read: which matrices, in what groups, and what became of it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from llama2gpu.config import Config
from llama2gpu.errors import CheckpointError, RequestError
from llama2gpu.quant import Dense, QuantSpec, Weight, quantize, weighted_error
from llama2gpu.quant.quantize import checked_peak
from llama2gpu.weights import LAYER_OPS, LayerWeights


@dataclass(frozen=True)
class Outcome:
    """What became of one canonical matrix.

    kind: "int8, row", "int4, group 64", or why it stays dense. error: the relative error of its
    outputs (`quant.weighted_error`), None where it was not asked for or nothing was rounded.
    """

    name: str
    kind: str
    quantized: bool
    error: float | None


class RoundingQuantizer:
    """Quantizes matrices one by one, without knowing their inputs.

    report takes the outcome of each; errors: measure them, which costs about as much again.
    Raises `RequestError` where the checkpoint is quantized already, `CheckpointError` where its
    weights are no numbers.
    """

    def __init__(
        self,
        spec: QuantSpec,
        config: Config,
        report: Callable[[Outcome], None] = lambda outcome: None,
        *,
        errors: bool = False,
    ) -> None:
        self.spec, self.config, self.report, self.errors = spec, config, report, errors
        c = config
        self.parts = {
            "w_qkv": (c.q_rows, c.kv_rows, c.kv_rows),
            "w_o": (c.dim,),
            "w_13": (c.hidden, c.hidden),
            "w_2": (c.dim,),
            "output": (c.vocab,),
        }

    def embed(self, table: Weight) -> None:
        """See `checkpoints.weights.Quantizer`."""
        check_finite("embed", _dense(table))

    def layer(self, n: int, layer: LayerWeights) -> LayerWeights:
        """See `checkpoints.weights.Quantizer`."""
        check_layer(n, layer)
        return self.rounded(n, layer, dict.fromkeys(LAYER_OPS))

    def output(self, norm: torch.Tensor, head: Weight, tied: bool) -> tuple[torch.Tensor, Weight]:
        """See `checkpoints.weights.Quantizer`."""
        self.check_output(norm, head)
        return norm, self.head(head, None)

    def check_output(self, norm: torch.Tensor, head: Weight) -> None:
        """Raises `CheckpointError` for a last norm or head that are no numbers."""
        check_finite("norm", norm)
        check_finite("output", _dense(head))

    def rounded(
        self, n: int, layer: LayerWeights, moments: dict[str, torch.Tensor | None]
    ) -> LayerWeights:
        """Layer n quantized, with what is known of the inputs of its matrices."""
        found: dict[str, Any] = {
            name: self.matrix(f"layers.{n}.{name}", getattr(layer, name), moments[name])
            for name in LAYER_OPS
        }
        return replace(layer, **found)

    def head(self, head: Weight, moments: torch.Tensor | None) -> Weight:
        """The output matrix, which stays as it is unless it was asked for."""
        return self.matrix("output", head, moments) if self.spec.head else head

    def matrix(self, name: str, weight: Weight, moments: torch.Tensor | None) -> Weight:
        """One canonical matrix by its name, quantized where it can be."""
        data, part = _dense(weight), name.rpartition(".")[2]
        group = self.group(part, weight.shape[1])
        with naming(name):
            found = quantize(data, self.spec, group, moments)
        error = weighted_error(data, found, moments) if self.errors else None
        self.report(Outcome(name, *self._kind(part, found, group), error))
        return found

    def group(self, part: str, columns: int) -> int | None:
        """Columns of a group in a matrix; None where it stays dense."""
        return self.spec.group_of(self.parts[part], columns)

    def _kind(self, part: str, found: Weight, group: int | None) -> tuple[str, bool]:
        if not isinstance(found, Dense):
            single = group == found.shape[1] and self.spec.group is None
            return f"{self.spec.kind}, {'row' if single else f'group {group}'}", True
        misfit = self.spec.misfit(self.parts[part], found.shape[1])
        return "dense: " + (misfit or "float16 can't hold its scales"), False


def left_dense(outcomes: Sequence[Outcome]) -> str | None:
    """One line about the matrices that were asked for and stay dense; None where there are none."""
    dense = [outcome for outcome in outcomes if not outcome.quantized]
    if not dense:
        return None
    reasons: dict[str, dict[str, None]] = {}  # the kinds of matrices of each, in their order
    for outcome in dense:
        kind = outcome.name.rpartition(".")[2]
        reasons.setdefault(outcome.kind.removeprefix("dense: "), {})[kind] = None
    told = "; ".join(f"{', '.join(kinds)}: {reason}" for reason, kinds in reasons.items())
    return f"{len(dense)} of {len(outcomes)} matrices stay dense ({told})"


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Turns a refusal into a `CheckpointError` that names the tensor."""
    try:
        yield
    except RequestError as problem:
        raise CheckpointError(f"{name}: {problem}") from problem


def check_finite(name: str, tensor: torch.Tensor) -> None:
    """Raises `CheckpointError` where a tensor holds NaN or infinity."""
    with naming(name):
        checked_peak(tensor)


def check_layer(n: int, layer: LayerWeights) -> None:
    """The same for all of layer n, before anything is computed with it."""
    for name in ("attention_norm", "ffn_norm"):
        check_finite(f"layers.{n}.{name}", getattr(layer, name))
    for name in LAYER_OPS:
        check_finite(f"layers.{n}.{name}", _dense(getattr(layer, name)))


def _dense(weight: Weight) -> torch.Tensor:
    if not isinstance(weight, Dense):
        raise RequestError("the checkpoint is quantized already: leave out --quant")
    return weight.data

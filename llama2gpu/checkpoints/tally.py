"""What writers of files share: matrices a part at a time, and a count of what became of them."""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import torch

from llama2gpu.errors import RequestError
from llama2gpu.quant import Int4, Int8, Weight
from llama2gpu.quant.quantize import checked_peak

#: About how many weights are converted at a time.
_AT_A_TIME = 1 << 20


@dataclass
class Tally:
    """Tensors that were kept to the bit, and those that were rounded, with the error of these.

    files: that were written. notes: what a person should know, a line each.
    """

    exact: int = 0
    rounded: int = 0
    files: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _lost: float = 0.0
    _total: float = 0.0

    @property
    def error(self) -> float:
        """The relative error of the rounded ones together, in Frobenius norm; 0 where none was."""
        return math.sqrt(self._lost / max(self._total, sys.float_info.min))

    def note_matrices(self, names: Sequence[str], what: str) -> None:
        """Tells what became of these, where there are any."""
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            self.notes.append(f"{what}: {names[0]}{more}")

    def add(self, lost: float, total: float) -> None:
        """One tensor: the sums of squares of its errors and of its values."""
        self.exact += lost == 0
        self.rounded += lost != 0
        if lost:
            self._lost, self._total = self._lost + lost, self._total + total


def narrowed(name: str, values: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, float]:
    """A tensor in another floating type, and the sum of the squares of its errors.

    Raises `RequestError`, in its `name`, for weights beyond that type.
    """
    kept = values.to(dtype)
    if torch.promote_types(values.dtype, dtype) == dtype:
        return kept, 0.0
    wide = values.float()
    lost = squares(kept.float() - wide)
    if not math.isfinite(lost):
        refuse_range(name, wide, "the type", "give --dtype fp32")
    return kept, lost


def refuse_range(name: str, values: torch.Tensor, what: str, remedy: str) -> NoReturn:
    """Raises what can't be held of a tensor: numbers that are none, or too large ones."""
    try:
        checked_peak(values)
    except RequestError as problem:
        raise RequestError(f"{name}: {problem}") from problem
    raise RequestError(f"{name} has weights beyond what {what} can hold: {remedy}")


def squares(values: torch.Tensor) -> float:
    """The sum of squares, in float64."""
    return float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2


def as_int8(weight: Weight) -> Weight:
    """An int4 matrix in int8, of the same values; others, and other orders of columns, as is."""
    if isinstance(weight, Int4) and weight.order is None:
        return Int8(weight.values(), weight.scales)
    return weight


def parts(weight: Weight) -> Iterator[Weight]:
    """A matrix in blocks of rows, each of a bounded number of weights."""
    rows, columns = weight.shape
    step = max(1, _AT_A_TIME // columns)
    for start in range(0, rows, step):
        yield weight.rows(slice(start, start + step))

"""What is asked of a quantization, and which tensors can be had that way."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from llama2gpu.errors import RequestError

KINDS = ("int8", "int4")
METHODS = ("rtn", "hqq", "gptq", "awq")
#: Methods that need the second moments of the inputs.
CALIBRATED = ("gptq", "awq")
GROUPS = (128, 64, 32)


@dataclass(frozen=True)
class QuantSpec:
    """How to quantize.

    kind: "int8" or "int4". group: columns that share a scale, one of `GROUPS`; for int8 None is
    one scale for each row. method: one of `METHODS`; int8 is always round to nearest.
    zero_points: int4 with zero points 1 to 15 instead of 8 everywhere. head: the output matrix
    too, and with it a tied embedding.
    Raises `RequestError` for what does not exist.
    """

    kind: str
    group: int | None = None
    method: str = "rtn"
    zero_points: bool = False
    head: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise RequestError(f"quantization {self.kind!r}: choose {', '.join(KINDS)}")
        if self.method not in METHODS:
            raise RequestError(f"quantization method {self.method!r}: choose {', '.join(METHODS)}")
        if self.kind == "int8" and self.method != "rtn":
            raise RequestError(f"method {self.method!r} is for int4: int8 rounds to nearest (rtn)")
        if self.kind == "int8" and self.zero_points:
            raise RequestError("zero points are for int4: int8 is symmetric")
        if self.group not in ((None, *GROUPS) if self.kind == "int8" else GROUPS):
            raise RequestError(f"quantization group {self.group}: choose {_listed(self.kind)}")

    @property
    def bits(self) -> int:
        """Bits of a value."""
        return int(self.kind.removeprefix("int"))

    def group_of(self, rows: Sequence[int], columns: int) -> int | None:
        """Columns of a group in a matrix of parts with so many `rows`; None where it stays dense.

        The asked group where it divides the columns, else the largest smaller one that does; int8
        falls back to one scale for each row. Dense is what a GPTQ folder can't hold, whose words
        take 8 rows or columns of int4 and 4 of int8, so that a saved matrix is the same.
        """
        if self.misfit(rows, columns) is not None:
            return None
        fitting = self._fitting(columns)
        return fitting[0] if fitting else columns

    def misfit(self, rows: Sequence[int], columns: int) -> str | None:
        """Why a matrix of parts with so many `rows` stays dense; None where it does not."""
        word = 32 // self.bits
        for count, what in [*((count, "rows") for count in rows), (columns, "columns")]:
            if count % word:
                return f"{count} {what} are no multiple of {word}"
        if self.kind == "int4" and not self._fitting(columns):
            return f"{columns} columns are no multiple of {GROUPS[-1]}"
        return None

    def _fitting(self, columns: int) -> list[int]:
        """Groups that divide the columns, the largest first."""
        return [g for g in GROUPS if self.group and g <= self.group and columns % g == 0]


def default_group(kind: str) -> int | None:
    """The group where none is asked for; None is one scale for each row."""
    return GROUPS[0] if kind == "int4" else None


def _listed(kind: str) -> str:
    return ", ".join(map(str, GROUPS)) + (", or row" if kind == "int8" else "")


_SPEC = re.compile(r"(\w+)(?::(\d{1,6}))?(?::([a-z]+))?(\+zeros)?(\+head)?")


def parse_spec(text: str) -> QuantSpec:
    """The quantization that `kind[:group][:method][+zeros][+head]` asks for.

    int4 is in groups of 128, by rtn, where that is not said: "int8", "int8:32", "int4:gptq",
    "int4:32:hqq+zeros+head". Raises `RequestError` for another form and for what does not exist.
    """
    if not (found := _SPEC.fullmatch(text)):
        raise RequestError(
            f"quantization {text!r} is not of the form kind[:group][:method][+zeros][+head]: "
            "give int8, int4:32 or int4:128:gptq+head, say"
        )
    kind, group, method, zeros, head = found.groups()
    columns = int(group) if group else default_group(kind)
    return QuantSpec(kind, columns, method or "rtn", zeros is not None, head is not None)

"""Two files of measurements, row by row: what became slower, beyond a threshold and the noise."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llama2gpu.errors import ResultsError
from llama2gpu.files import one_line
from llama2gpu.measure.results import NAME, Row, read_results, spread

#: Figures of a round that are compared, and whether more of each is better.
FIGURES = {
    "decode_rate": True, "prefill_rate": True, "load_seconds": False, "microseconds": False,
}  # fmt: skip


@dataclass(frozen=True)
class Change:
    """One figure of one row in both files.

    old, new: medians over the rounds. speed: of the new run as a part of the old one's, below 1 is
    slower. noise: standard deviations of both runs as parts of their medians, joined.
    peak: read peak of the new run as a part of the old one's, which tells of the machine; or None.
    slower: whether `speed` is below 1 by more than the threshold, and by more than the noise.
    """

    name: str
    figure: str
    old: float
    new: float
    speed: float
    noise: float
    peak: float | None
    slower: bool


@dataclass(frozen=True)
class Comparison:
    """What both files have, and the names of what only one of them has."""

    changes: list[Change]
    only_old: list[str]
    only_new: list[str]

    @property
    def slower(self) -> list[Change]:
        """The regressions."""
        return [change for change in self.changes if change.slower]


def compare(old: Path, new: Path, threshold: float = 0.05) -> Comparison:
    """Compares two files of results; rows are matched by what they measured.

    threshold: the part of its speed that a row may lose. Raises `ResultsError` where a file can't
    be read, where they are of different devices, and where they have no figure in common.
    """
    before, after = _named(old), _named(new)
    common = [name for name in before if name in after]
    if not common:
        raise ResultsError(f"{old} and {new} have nothing in common: measure the same models")
    changes = []
    for name in common:
        places = _place(before[name]), _place(after[name])
        if places[0] != places[1]:
            raise ResultsError(
                f"{old} was measured on {places[0]} and {new} on {places[1]}: compare runs of one "
                "device"
            )
        changes += _changes(name, before[name], after[name], threshold)
    if not changes:
        raise ResultsError(f"{old} and {new} have no figure in common: measure the same models")
    return Comparison(
        changes,
        [name for name in before if name not in after],
        [name for name in after if name not in before],
    )


def _named(path: Path) -> dict[str, Row]:
    found: dict[str, Row] = {}
    for row in read_results(path):
        name = row_name(row)
        if name in found:
            raise ResultsError(f"{path} holds {name} twice: measure each once")
        found[name] = row
    return found


def row_name(row: Row) -> str:
    """What a row measured, in words."""
    marks = {"depth": "depth {}", "batch": "batch {}", "tokens": "{} tokens"}
    return one_line(" ".join(marks.get(field, "{}").format(row[field]) for field in NAME), 300)


def _place(row: Row) -> str:
    machine = row["machine"]
    device, threads = machine.get("device", "an unknown device"), machine.get("threads", "?")
    return one_line(f"{device} ({threads} threads)", 300)


def _changes(name: str, old: Row, new: Row, threshold: float) -> list[Change]:
    found = []
    peaks = _values(old, "read_peak"), _values(new, "read_peak")
    peak = statistics.median(peaks[1]) / statistics.median(peaks[0]) if all(peaks) else None
    for figure, more in FIGURES.items():
        values = _values(old, figure), _values(new, figure)
        if not all(values):
            continue
        before, after = map(statistics.median, values)
        speed = after / before if more else before / after
        noise = math.hypot(*(spread(v) / m for v, m in zip(values, (before, after), strict=True)))
        slower = 1 - speed > max(threshold, noise)
        found.append(Change(name, figure, before, after, speed, noise, peak, slower))
    return found


def _values(row: Row, figure: str) -> Sequence[float]:
    """The figure of all rounds; none where a round lacks it."""
    values = [found.get(figure) for found in row["rounds"]]
    return [] if None in values else [float(value) for value in values]

"""Files of measurements: rows that say what was measured, on what, and each round of it.

{"format": "llama2gpu-bench", "version": 1, "rows": [{"bench": "decode", "rounds": […], …}, …]}
"""

import json
import math
import os
import statistics
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from llama2gpu.errors import ResultsError
from llama2gpu.files import one_line, read_regular

FORMAT, VERSION = "llama2gpu-bench", 1


@dataclass(frozen=True)
class Named:
    """What every row says of what was measured; two rows that agree in it are of one name.

    bench: what was done. dtype, quant: of the weights. depth: tokens of a sequence that are cached
    before. batch: sequences at once. tokens: new ones of each.
    """

    bench: str
    model: str
    backend: str
    dtype: str
    quant: str
    depth: int
    batch: int
    tokens: int


NAME = tuple(field.name for field in fields(Named))

_LIMIT = 64 << 20
Row = dict[str, Any]


def document(rows: Iterable[Any], **more: Any) -> dict[str, Any]:
    """Results, each a dataclass, as the object that a file holds; more: what isn't of a row."""
    return {"format": FORMAT, "version": VERSION, "rows": [asdict(row) for row in rows], **more}


def write_results(path: Path, rows: Iterable[Any], **more: Any) -> None:
    """Writes the file, whole or not at all. Raises `ResultsError` where the system refuses."""
    with new_file(path) as work:
        text = json.dumps(document(rows, **more), indent=1, allow_nan=False)
        work.write_text(text + "\n", encoding="utf-8")


def read_results(path: Path) -> list[Row]:
    """The rows of a file. Raises `ResultsError` for one that is damaged or of another kind."""
    try:
        found = json.loads(read_regular(path, _LIMIT).decode("utf-8"))
    except OSError as error:
        raise ResultsError(f"{path} can't be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{path} is no JSON: {one_line(error, 200)}; measure again") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ResultsError(f"{path} holds no results of `llama2gpu bench`: give one of its files")
    if found.get("version") != VERSION:
        raise ResultsError(f"{path} is of another version of llama2gpu: measure again")
    rows = found.get("rows")
    if not isinstance(rows, list) or not rows:
        raise ResultsError(f"{path} has no rows: measure again")
    for number, row in enumerate(rows, 1):
        if (wrong := _wrong(row)) is not None:
            raise ResultsError(f"{path} is damaged: {wrong} of row {number}; measure again")
    return rows


def _wrong(row: Any) -> str | None:
    """What is wrong with a row, or None."""
    if not isinstance(row, dict):
        return "the type"
    for name in NAME:
        if not isinstance(row.get(name), str | int):
            return f"the {name}"
    machine = row.get("machine")
    if not isinstance(machine, dict) or not all(isinstance(x, str) for x in machine.values()):
        return "the machine"
    rounds = row.get("rounds")
    if not isinstance(rounds, list) or not rounds:
        return "the list of rounds"
    return next(("a round" for found in rounds if not _is_round(found)), None)


def _is_round(found: Any) -> bool:
    """Whether it is figures above 0 by name; None stands for one that was not taken."""
    return isinstance(found, dict) and all(
        x is None
        or (isinstance(x, int | float) and not isinstance(x, bool) and x > 0 and math.isfinite(x))
        for x in found.values()
    )


def spread(values: Sequence[float]) -> float:
    """Standard deviation of the rounds, 0 of a single one."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A file beside `path`, of the same suffix, that takes its place when the block ends.

    Raises `ResultsError` where the system refuses; where the block fails, nothing new is left.
    """
    check_file(path)
    work = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield work
        work.replace(path)
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        with suppress(OSError):
            work.unlink(missing_ok=True)


def check_file(path: Path) -> None:
    """Raises `ResultsError` where no file can be written, before there is anything to write."""
    if path.is_dir():
        raise ResultsError(f"{path} is a folder: give the name of a file")
    if path.exists() and not path.is_file():
        raise ResultsError(f"{path} is no regular file: give another name")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        if path.exists():
            with path.open("ab"):
                pass
    except OSError as error:
        raise _refused(path, error) from error


def _refused(path: Path, error: OSError) -> ResultsError:
    return ResultsError(f"can't write {path}: {error.strerror or error}; write elsewhere")

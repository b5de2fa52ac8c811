"""Runs compared: a planted slowdown is found, noise passes, and what can't be compared is said."""

import json
from pathlib import Path
from typing import Any

import pytest

from llama2gpu.errors import ResultsError
from llama2gpu.measure.compare import compare, row_name
from llama2gpu.measure.results import FORMAT, VERSION

MACHINE = {"device": "CPU, AVX512", "threads": "2"}
STEADY, NOISY = (100.0, 101.0, 99.0), (100.0, 130.0, 70.0)


def row(rates: tuple[float, ...] = STEADY, figure: str = "decode_rate", **fields: Any) -> Any:
    name = {"bench": "decode", "model": "m", "backend": "torch", "dtype": "bf16", "quant": "none"}
    sizes = {"depth": 0, "batch": 1, "tokens": 32}
    rounds = [{figure: rate, "prefill_rate": None, "read_peak": 4e9} for rate in rates]
    if figure == "prefill_rate":
        rounds = [{figure: rate} for rate in rates]
    return {**name, **sizes, "rounds": rounds, "machine": MACHINE, **fields}


def write(path: Path, *rows: Any) -> Path:
    path.write_text(json.dumps({"format": FORMAT, "version": VERSION, "rows": rows}))
    return path


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return write(tmp_path / "old.json", row())


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return tmp_path / "new.json"


def scaled(rates: tuple[float, ...], factor: float) -> tuple[float, ...]:
    return tuple(rate * factor for rate in rates)


@pytest.mark.parametrize(
    ("before", "factor", "threshold", "slower"),
    [
        (STEADY, 0.90, 0.05, True),
        (STEADY, 0.96, 0.05, False),
        (STEADY, 0.96, 0.03, True),
        (STEADY, 1.00, 0.00, False),
        (STEADY, 0.99, 0.00, False),  # within ± 1.4 %
        (STEADY, 1.50, 0.05, False),
        (NOISY, 0.80, 0.05, False),  # within ± 42 %
        (NOISY, 0.50, 0.05, True),
        ((100.0,), 0.90, 0.05, True),
    ],
)
def test_slower(
    tmp_path: Path, before: tuple[float, ...], factor: float, threshold: float, slower: bool
) -> None:
    old = write(tmp_path / "old.json", row(before))
    new = write(tmp_path / "new.json", row(scaled(before, factor)))
    (change,) = compare(old, new, threshold).changes
    assert change.speed == pytest.approx(factor)
    assert (change.figure, change.slower) == ("decode_rate", slower)
    assert change.peak == 1


def test_of_seconds_more_is_slower(tmp_path: Path) -> None:
    old = write(tmp_path / "old.json", row(figure="load_seconds"))
    new = write(tmp_path / "new.json", row(scaled(STEADY, 1.25), figure="load_seconds"))
    (change,) = compare(old, new).slower
    assert change.speed == pytest.approx(0.8)
    assert compare(new, old).slower == []


def test_the_slower_of_several_figures_is_named(old: Path, new: Path) -> None:
    write(old, row(), row(depth=512), row(figure="prefill_rate", bench="prefill"))
    slow = row(scaled(STEADY, 0.8), figure="prefill_rate", bench="prefill")
    write(new, row(depth=512), slow, row())
    found = compare(old, new)
    assert len(found.changes) == 3
    assert [change.name for change in found.slower] == [row_name(slow)]
    assert row_name(slow) == "prefill m torch bf16 none depth 0 batch 1 32 tokens"


def test_a_name_can_not_write_to_the_terminal(old: Path, new: Path) -> None:
    write(old, row(model="a\x1b[2Jb\n"))
    write(new, row(model="a\x1b[2Jb\n"))
    (change,) = compare(old, new).changes
    assert change.name.startswith(r"decode a\x1b[2Jb torch")


def test_rows_of_one_file_alone_are_named(old: Path, new: Path) -> None:
    write(old, row(), row(batch=8))
    write(new, row(), row(quant="int4"))
    found = compare(old, new)
    assert found.only_old == [row_name(row(batch=8))]
    assert found.only_new == [row_name(row(quant="int4"))]


def wrapped(*rows: Any, **fields: Any) -> str:
    return json.dumps({"format": FORMAT, "version": VERSION, "rows": rows, **fields})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no JSON"),
        ('{"format": "llama2gpu-bench", ', "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("\udcff", "no JSON"),
        ("[]", "no results of `llama2gpu bench`"),
        ('{"rows": []}', "no results of `llama2gpu bench`"),
        (wrapped(row(), version=2), "another version"),
        (wrapped(), "no rows"),
        (wrapped(row(), 3), "the type of row 2"),
        (wrapped(row(model=None)), "the model of row 1"),
        (wrapped(row(machine="CPU")), "the machine of row 1"),
        (wrapped(row(())), "the list of rounds of row 1"),
        (wrapped(row((1.0, 0.0))), "a round of row 1"),
        (wrapped(row((float("nan"),))), "a round of row 1"),
        (wrapped(row(rounds=[{"decode_rate": "fast"}])), "a round of row 1"),
        (wrapped(row(rounds=[{"decode_rate": 10**400}])), "a round of row 1"),
        (wrapped(row((1e308, 1e-308))), "a round of row 1"),
        (wrapped(row(), row()), "twice"),
        (wrapped(row(machine={"device": "H200", "threads": "2"})), "compare runs of one device"),
        (wrapped(row(machine=MACHINE | {"threads": "4"})), "compare runs of one device"),
        (wrapped(row(quant="int8")), "nothing in common"),
        (wrapped(row(figure="prefill_rate")), "no figure in common"),
    ],
)
def test_what_cannot_be_compared(old: Path, new: Path, text: str, message: str) -> None:
    new.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ResultsError, match=message) as error:
        compare(old, new)
    assert "\n" not in str(error.value)
    assert str(new) in str(error.value)


@pytest.mark.parametrize("place", ["missing.json", "."])
def test_a_file_that_cannot_be_read(old: Path, tmp_path: Path, place: str) -> None:
    with pytest.raises(ResultsError, match="can't be read"):
        compare(old, tmp_path / place)

"""README's figures are those of the files in bench/results."""

import json
import re
from pathlib import Path

import pytest

from bench.report import README, RESULTS, marked, rewrite, tables
from llama2gpu.measure.results import read_results

TABLES = tables(RESULTS)
TEXT = README.read_text(encoding="utf-8")


def test_tables_are_as_made_from_the_results() -> None:
    assert sorted(marked(TEXT)) == sorted(TABLES)
    assert rewrite(TEXT, RESULTS) == TEXT, "run python -m bench.report"


@pytest.mark.parametrize("name", TABLES)
def test_another_figure_is_seen(name: str) -> None:
    whole = TABLES[name]
    row = next(line for line in whole.splitlines()[2:] if re.search(r"\d", line))
    digit = next(c for c in reversed(row) if c.isdigit())
    at = whole.index(row) + row.rindex(digit)
    wrong = whole[:at] + str(9 - int(digit)) + whole[at + 1 :]
    assert rewrite(TEXT.replace(whole, wrong), RESULTS) == TEXT
    assert TEXT.replace(whole, wrong) != TEXT


def test_what_the_speed_was_measured_on() -> None:
    rows = read_results(RESULTS / "decode-llama-1.1b-cpu.json")
    words = {4: "four", 5: "five"}
    for row in rows:
        machine = row["machine"]
        said = f"PyTorch {machine['torch'].partition('+')[0]}, gcc 12.2, {machine['date']}."
        assert f"{said} Medians of {words[len(row['rounds'])]} rounds" in TEXT
        assert f"{machine['threads']} CPU cores" in TEXT


def test_training_figures() -> None:
    rows = json.loads((RESULTS / "training-stories-cpu.json").read_text(encoding="utf-8"))
    (row,) = [r for r in rows if (r["context"], r["batch"]) == (512, 8)]
    speed, share = round(row["tokens_per_second"], -2), row["share"]
    assert (
        f"{speed:,.0f} tokens a second at 3.3 million parameters, {share:.0%}".replace("%", " %")
        in TEXT
    )


def test_serving_figures() -> None:
    found = json.loads((RESULTS / "serve-stories-cpu.json").read_text(encoding="utf-8"))
    mixed, slower = found["mixed"], found["long_prompt"]["time_per_token"]
    assert f"all {mixed['texts_compared']:,} answers" in TEXT
    assert f"take {min(slower):.1f} to {max(slower):.1f} times as long" in TEXT
    assert mixed["different_texts"] == mixed["wrong"] == mixed["pages_used_after"] == 0
    assert mixed["seconds"] >= 300


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.name)
def test_results_hold_no_place_of_the_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "/home/" not in text
    assert "/tmp/" not in text

"""`llama2gpu bench`, as a user meets it; nothing here looks at how long anything took."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from llama2gpu.cli import bench, bench_options
from llama2gpu.cli.bench_decode import memory
from llama2gpu.cli.bench_options import plus_minus
from llama2gpu.cli.main import program
from llama2gpu.measure import decode
from llama2gpu.measure.results import NAME, read_results
from llama2gpu.measure.shapes import SHAPES

SMALL = ["--shape", "stories260k", "--device", "cpu", "--repeats", "2"]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fixed peaks, and no process of its own for a measurement."""

    def run(work: Callable[[], Any]) -> Any:
        return work()

    monkeypatch.setattr(bench_options, "apart", run)
    monkeypatch.setattr(decode, "read_bandwidth", lambda blocks, repeats: 4e9)
    monkeypatch.setattr(decode, "matmul_peak", lambda device, dtype, repeats: 2e12)


def run(*words: object) -> Result:
    return CliRunner().invoke(program, ["bench", *map(str, words)])


def test_help_lists_commands_in_order() -> None:
    lines = run("--help").output.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in lines if line[2] != " "] == list(bench.COMMANDS)


def test_shapes_are_those_of_the_package() -> None:
    assert list(SHAPES) == list(bench_options.SHAPES)


def test_decode(tmp_path: Path) -> None:
    path = tmp_path / "new.json"
    result = run(
        "decode", *SMALL, "--depth", "0,8", "--batch", "1,2", "--quant", "none", "--quant", "int8",
        "--tokens", "2", "-o", path,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) == 2 + 8
    assert "tok/s" in lines[0]
    assert "stories260k" in lines[2]
    assert "±" in lines[2]
    assert "torch int8" in lines[-1]
    assert "2/2  measuring stories260k int8" in result.stderr
    rows = json.loads(path.read_text())["rows"]
    cells = [(row["quant"], row["depth"], row["batch"]) for row in rows]
    kinds = ("none", "int8")
    assert cells == [(quant, d, b) for quant in kinds for d in (0, 8) for b in (1, 2)]


def test_decode_json() -> None:
    result = run("decode", *SMALL, "--tokens", "2", "--json", "--quiet")
    (row,) = json.loads(result.stdout)["rows"]
    assert set(NAME) <= set(row)
    assert len(row["rounds"]) == 2
    assert {"decode_rate", "prefill_rate", "read_peak", "matmul_peak"} <= set(row["rounds"][0])
    assert result.stderr == ""


def test_prefill_splits_the_time_to_the_first_token() -> None:
    result = run("prefill", *SMALL, "--tokens", "4,8", "--depth", "3")
    assert result.exit_code == 0, result.output
    for heading in ("load s", "compile s", "prefill s", "±"):
        assert heading in result.stdout
    (first, second) = json.loads(run("prefill", *SMALL, "--tokens", "4,8", "--json").stdout)["rows"]
    assert (first["tokens"], second["tokens"]) == (4, 8)
    assert first["load_seconds"] > 0


def test_without_a_model_it_is_the_shipped_one() -> None:
    result = run("load", "--repeats", "1", "--device", "cpu", "--json")
    (row,) = json.loads(result.stdout)["rows"]
    assert (row["bench"], row["model"], row["dtype"]) == ("load", "stories", "bf16")


def test_load_of_a_shape() -> None:
    (row,) = json.loads(run("load", *SMALL, "--quant", "int8:32", "--json").stdout)["rows"]
    assert (row["model"], row["quant"], len(row["rounds"])) == ("stories260k", "int8:32", 2)


def test_load_table() -> None:
    result = run("load", "--repeats", "1", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "load / read" in result.stdout
    assert "stories" in result.stdout


def planted(path: Path, out: Path, factor: float) -> Path:
    """The file with every rate multiplied."""
    found = json.loads(path.read_text())
    for row in found["rows"]:
        row["rounds"] = [{"decode_rate": factor * x} for x in (100.0, 101.0, 99.0)]
    out.write_text(json.dumps(found))
    return out


def test_compare(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    assert run("decode", *SMALL, "--tokens", "2", "-o", path).exit_code == 0
    old = planted(path, tmp_path / "old.json", 1)
    slow = planted(path, tmp_path / "slow.json", 0.9)
    alike = planted(path, tmp_path / "alike.json", 0.97)
    result = run("compare", old, slow)
    assert (result.exit_code, "slower" in result.stdout) == (1, True)
    assert "1 of 1 figures are slower" in result.stderr
    assert run("compare", slow, old).exit_code == 0
    result = run("compare", old, alike)
    assert (result.exit_code, "slower" in result.stdout) == (0, False)
    assert run("compare", old, alike, "--threshold", "2").exit_code == 1
    report = json.loads(run("compare", old, slow, "--json", "-q").stdout)
    assert report["changes"][0]["slower"] is True


def test_brackets_in_names_are_no_markup(tmp_path: Path) -> None:
    path, other = tmp_path / "run.json", tmp_path / "named.json"
    assert run("decode", *SMALL, "--tokens", "2", "-o", path).exit_code == 0
    other.write_text(path.read_text().replace('"stories260k"', '"my[v2] [/b]"'))
    result = run("compare", other, other)
    assert result.exit_code == 0, result.output
    assert "decode my[v2] [/b] torch" in result.stdout


@pytest.mark.parametrize("text", ["{", "[]", None], ids=["damaged", "other", "missing"])
def test_files_that_cannot_be_compared(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "old.json"
    if text is not None:
        path.write_text(text)
    result = run("compare", path, path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"llama2gpu: error: {path}")
    assert result.stderr.count("\n") == 1


def test_profile(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    result = run("decode", *SMALL, "--tokens", "2", "--profile", path)
    assert result.exit_code == 0, result.output
    events = json.loads(path.read_text())["traceEvents"]
    assert {"layer", "attention", "draw"} <= {event.get("name") for event in events}
    assert result.stderr.splitlines()[-1].startswith("trace of ")
    assert str(path) in result.stderr


def test_profile_of_run(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    words = ["run", "One day", "-n", "3", "--device", "cpu", "-t", "0"]
    result = CliRunner().invoke(program, [*words, "--profile", str(path)])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("One day")
    events = json.loads(path.read_text())["traceEvents"]
    assert {"embed", "layer", "draw"} <= {event.get("name") for event in events}
    assert str(path) in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("words", [["bench", "decode"], ["bench", "prefill"], ["run"]])
@pytest.mark.parametrize("place", [".", "missing/trace.json"])
def test_a_trace_that_cannot_be_written(tmp_path: Path, words: list[str], place: str) -> None:
    result = CliRunner().invoke(program, [*words, "--profile", str(tmp_path / place)])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("llama2gpu: error: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["decode", "prefill", "load"])
def test_what_was_measured_is_kept_where_the_next_fails(tmp_path: Path, command: str) -> None:
    path = tmp_path / "run.json"
    tokens = [] if command == "load" else ["--tokens", "2"]
    result = run(command, *SMALL, *tokens, "--model", tmp_path / "missing", "-o", path)
    assert (result.exit_code, result.stdout) == (1, "")
    assert [row["model"] for row in read_results(path)] == ["stories260k"]


def test_results_that_cannot_be_written(tmp_path: Path) -> None:
    result = run("load", "-o", tmp_path)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "is a folder" in result.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["decode", "--depth", "0,many"],
        ["decode", "--depth", ""],
        ["decode", "--batch", "0"],
        ["decode", "--batch", "257"],
        pytest.param(["decode", "--batch", "9" * 5000], id="decode --batch 999..."),
        ["decode", "--shape", "llama9"],
        ["decode", "--quant", "int2"],
        ["decode", "--quant", "int4:gptq"],
        ["decode", *SMALL, "--batch", "1,2", "--profile", "trace.json"],
        ["decode", *SMALL, "--llama-bench", "/bin/sh", "--depth", "0"],
        ["decode", "--llama-bench", "/bin/sh", "--depth", "8"],
        ["prefill", "--tokens", "0"],
        ["load", "--profile", "trace.json"],
        ["compare", "one.json"],
        ["compare", "a", "b", "--threshold", "-1"],
        ["compare", "a", "b", "--threshold", "nan"],
        ["nonsense"],
    ],
    ids=" ".join,
)
def test_wrong_usage(words: list[str]) -> None:
    result = run(*words)
    assert (result.exit_code, result.stdout) == (2, "")


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "–"), (2048, "2 KiB"), (3 << 20, "3 MiB"), (5 << 29, "2.50 GiB")],
)
def test_memory_in_words(count: int | None, text: str) -> None:
    assert memory(count) == text


def test_a_single_round_has_no_deviation() -> None:
    assert plus_minus(1234.5, 0.0, 1) == "1,234.5"
    assert plus_minus(1234.5, 6.25, 1) == "1,234.5 ± 6.2"


def test_an_unknown_model_is_one_line() -> None:
    result = run("decode", "--model", "/nonexistent")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "/nonexistent" in result.stderr

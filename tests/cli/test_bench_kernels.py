"""`llama2gpu bench kernels`, with a timer and backends that are made up."""

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from llama2gpu.backends.base import Backend
from llama2gpu.cli import bench_kernels
from llama2gpu.cli.main import program
from llama2gpu.measure import kernel_timer, roofs, shapes
from llama2gpu.measure.results import read_results
from tests.measure.fake_kernels import CPU, TINY, FakeRoofing, FakeTimer, PlainBackend, WrongBackend

ROOT = Path(__file__).resolve().parents[2]
FIGURES = {"us", "us_low", "us_high", "bytes", "flops", "gbps", "tflops", "share", "bound",
           "baseline", "baseline_us", "ratio"}  # fmt: skip
NAMES = {"backend", "op", "case", "weight", "dtype", "m", "n", "k", "context", "checked", "problem"}


@pytest.fixture(autouse=True)
def _made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(names: list[str], device: str) -> Iterator[Backend]:
        known = {"auto": PlainBackend, "plain": PlainBackend, "wrong": WrongBackend}
        yield from (known[name](CPU) for name in names)

    monkeypatch.setattr(bench_kernels, "chosen", chosen)
    monkeypatch.setattr(kernel_timer, "timer_for", lambda device: FakeTimer(50.0))
    monkeypatch.setattr(roofs, "Roofing", FakeRoofing)
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)


def call(*args: str) -> Result:
    base = ["bench", "kernels", "--shape", "tiny", "--context", "96", "--tokens", "1,3"]
    return CliRunner().invoke(program, [*base, *args])


def test_table() -> None:
    result = call("--op", "linear,rms_norm")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert "read 4.0 GB/s, copy 3.0 GB/s, matmul fp32 1, bf16 2 TFLOP/s" in lines[1]
    rows = [line.split() for line in lines if line.split()[:1] == ["plain"]]
    assert [row[:4] for row in rows if row[1] == "linear" and row[2] == "int4"] == [
        ["plain", "linear", "int4", "1"],
        ["plain", "linear", "int4", "3"],
    ]
    assert rows[0][4:6] == ["96×64", "50.0"]
    assert rows[0][-2:] == ["F.linear", "1.00"]
    assert max(map(len, lines)) <= 100


def test_a_wrong_op_is_named_and_has_no_figure() -> None:
    result = call("--op", "logits", "--quant", "none", "--backend", "plain,wrong")
    assert result.exit_code == 1
    rows = [line.split() for line in result.stdout.splitlines()]
    assert [row for row in rows if row[:1] == ["wrong"]] == [
        ["wrong", "logits", "dense", m, "640×64", "wrong"] for m in ("1", "3")
    ]
    assert len([row for row in rows if row[:1] == ["plain"] and "50.0" in row]) == 2
    told = [line for line in result.stderr.splitlines() if line.startswith("wrong: wrong logits")]
    assert len(told) == 2
    assert "its error is 0.1" in told[0]


def test_json() -> None:
    result = call("--op", "qkv,logits", "--json", "-q", "--backend", "plain,wrong")
    assert (result.exit_code, result.stderr) == (1, "")
    report = json.loads(result.stdout)
    assert {"device", "threads", "date", "versions", "roofs", "rows", "shape", "cache"} <= set(
        report
    )
    assert {"llama2gpu", "python", "torch"} <= set(report["versions"])
    assert report["roofs"] == {"copy": 3e9, "read": 4e9, "matmul": {"fp32": 1e12, "bf16": 2e12}}
    assert len(report["rows"]) == 2 * 2 * 3 * 2
    for row in report["rows"]:
        assert set(row) >= NAMES | FIGURES
        assert row["dtype"] == "bf16"
        if row["checked"]:
            assert row["us"] == row["baseline_us"] == 50.0
            assert row["gbps"] == pytest.approx(row["bytes"] / 50e-6 / 1e9)
        else:
            assert {row[name] for name in FIGURES} == {None}
    assert {row["backend"] for row in report["rows"] if not row["checked"]} == {"wrong"}


@pytest.mark.parametrize(
    ("later", "status", "slower"), [(50.0, 0, 0), (55.0, 0, 0), (65.0, 1, 4), (40.0, 0, 0)]
)
def test_runs_compared(
    later: float, status: int, slower: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    asked = ("--op", "project_add", "--quant", "int4", "-q")
    assert call(*asked, "-o", str(old)).exit_code == 0
    monkeypatch.setattr(kernel_timer, "timer_for", lambda device: FakeTimer(later))
    assert call(*asked, "-o", str(new)).exit_code == 0
    done = CliRunner().invoke(program, ["bench", "compare", str(old), str(new), "--json"])
    found = json.loads(done.stdout)["changes"]
    assert (done.exit_code, sum(one["slower"] for one in found)) == (status, slower)
    assert {(one["figure"], one["speed"]) for one in found} == {("microseconds", 50.0 / later)}
    assert len(found) == 4  # both projections, at 1 token and at 3


def test_wrong_rows_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    only_wrong = call("--op", "logits", "--quant", "none", "--backend", "wrong", "-o", str(path))
    assert (only_wrong.exit_code, path.exists()) == (1, False)
    assert "wrong: wrong logits (decode, dense): its error is 0.1" in only_wrong.stderr
    assert "640×64" in only_wrong.stdout
    call("--op", "logits", "--quant", "none", "--backend", "plain,wrong", "-o", str(path))
    assert {row["backend"] for row in read_results(path)} == {"plain"}


def test_csv() -> None:
    result = call("--op", "linear", "--quant", "int8,none", "--csv", "-q")
    rows = list(csv.DictReader(result.stdout.splitlines()))
    assert [(row["weight"], row["m"], row["k"]) for row in rows] == [
        (kind, m, "64") for kind in ("int8", "dense") for m in ("1", "3")
    ]
    assert set(rows[0]) >= NAMES | FIGURES
    assert {row["checked"] for row in rows} == {"True"}


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    svg, png = tmp_path / "a.svg", tmp_path / "a.PNG"
    result = call("--op", "linear", "--quant", "none", "--plot", str(svg), "--plot", str(png))
    assert result.exit_code == 0, result.stderr
    found = ["".join(node.itertext()) for node in ElementTree.parse(svg).iter()]
    assert {"linear", "1", "3"} <= set(found)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert sorted(tmp_path.iterdir()) == sorted([svg, png])


def test_a_plot_that_cannot_be_written_is_told_before(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    place = tmp_path / "missing" / "a.svg"
    result = call("--op", "linear", "--quant", "none", "--plot", str(place))
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"can't write {place}" in result.stderr


@pytest.mark.parametrize(
    ("args", "status", "told"),
    [
        (["--op", "lines"], 1, "unknown op 'lines'"),
        (["--shape", "huge"], 1, "unknown shape 'huge'"),
        (["--quant", "int3"], 1, "unknown quantization 'int3'"),
        (["--op", "rms_norm", "--quant", "int8"], 1, "leave nothing to measure"),
        (["--backend", ","], 1, "no backend was named"),
        (["--context", "4096"], 1, "the shape has a context of 128 tokens"),
        (["--tokens", "0"], 2, "is not a list of numbers"),
        (["--plot", "a.pdf"], 2, "does not end in .svg or .png"),
        (["--json", "--csv"], 2, "exclude each other"),
    ],
)
def test_wrong_usage(args: list[str], status: int, told: str) -> None:
    result = call(*args)
    assert result.exit_code == status
    assert told in result.stderr
    assert result.stdout == ""


def test_help_is_light() -> None:
    code = (
        "import sys\nsys.argv[1:] = ['bench', 'kernels', '--help']\n"
        "from llama2gpu.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    print('torch' in sys.modules)"
    )
    arguments = [sys.executable, "-c", code]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert "--plot" in done.stdout

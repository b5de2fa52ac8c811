"""`bench/gpu.sh`: that each command of it is one that exists, and what it tells of failures."""

import importlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from bench.peers import main as bench_peers
from llama2gpu.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "bench" / "gpu.sh"
#: Stands for Python: notes what it is called with, and fails or hangs where that is asked for.
STUB = """#!/bin/sh
echo "$@" >>"$CALLS"
case "$*" in
    *"bench.report"*) echo "the tables" ;;
    *"$FAILS"*) echo "it broke" >&2; exit 3 ;;
    *) echo "{}" ;;
esac
"""

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


def run(tmp_path: Path, fails: str = "nothing", **extra: str) -> tuple[Path, list[list[str]]]:
    stub, calls, out = tmp_path / "python", tmp_path / "calls", tmp_path / "out"
    stub.write_text(STUB)
    stub.chmod(0o755)
    named = {"PYTHON": str(stub), "CALLS": str(calls), "FAILS": fails, **extra}
    done = subprocess.run(
        ["bash", str(SCRIPT), str(out)], env=os.environ | named, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\nthe tables\n")
    return out, [line.split() for line in calls.read_text().splitlines()]


def parsed(words: list[str]) -> click.Context:
    """What the program makes of a command line, without running it."""
    command = importlib.import_module(COMMANDS[words[0]][0]).command
    context = command.make_context(words[0], list(words[1:]))
    if isinstance(command, click.Group):
        name, found, rest = command.resolve_command(context, list(words[1:]))
        assert found is not None
        return found.make_context(name, rest, parent=context)
    assert isinstance(context, click.Context)
    return context


def test_each_command_exists(tmp_path: Path) -> None:
    out, calls = run(tmp_path, BACKENDS="triton cupy torch")
    own = [words[2:] for words in calls if words[:2] == ["-m", "llama2gpu"]]
    names = [f"{c.parent.info_name} {c.info_name}" if c.parent else c.info_name
             for c in map(parsed, own)]  # fmt: skip
    assert names == ["doctor", "kernels tune", "bench kernels", *["bench decode"] * 3]
    decoding = [parsed(words).params for words in own if words[1] == "decode"]
    assert [p["backend"] for p in decoding] == ["triton", "cupy", "torch"]
    assert decoding[0]["quants"] == ("none", "int8", "int4")
    assert {tuple(p["shapes"]) for p in decoding} == {("llama2-7b",)}
    (peers,) = [words[2:] for words in calls if words[:2] == ["-m", "bench.peers"]]
    assert bench_peers.make_context("peers", peers).params["quants"] == ("int4",)
    tested = next(words for words in calls if words[:2] == ["-m", "pytest"])
    assert all((ROOT / word).exists() for word in tested[3:])
    steps = [line.split("\t") for line in (out / "steps.tsv").read_text().splitlines()]
    assert {step[1] for step in steps} == {"passed"}


def test_a_step_that_fails_is_told_and_the_others_run(tmp_path: Path) -> None:
    out, calls = run(tmp_path, fails="bench kernels", BACKENDS="torch", SHAPE="stories260k")
    steps = dict(line.split("\t")[:2] for line in (out / "steps.tsv").read_text().splitlines())
    assert steps["gpu-kernels"] == "failed (3)"
    assert {steps[name] for name in steps if name != "gpu-kernels"} == {"passed"}
    assert (out / "gpu-kernels.log").read_text() == "it broke\n"
    assert not (out / "gpu-kernels.json").exists()
    assert (out / "doctor.json").read_text() == "{}\n"
    assert not [words for words in calls if "tune" in words]


def test_without_a_gpu(tmp_path: Path) -> None:
    stub = tmp_path / "python"
    stub.write_text("#!/bin/sh\nexit 1\n")
    stub.chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if k != "BACKENDS"} | {"PYTHON": str(stub)}
    done = subprocess.run(
        ["bash", str(SCRIPT), str(tmp_path / "out")],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        "bench/gpu.sh: PyTorch sees no GPU here: set BACKENDS to measure without one"
    ]


def test_results_of_a_run_before_are_gone(tmp_path: Path) -> None:
    """Another backend's would stand in the tables as if it had run."""
    old = tmp_path / "out" / "gpu-decode-cupy.json"
    old.parent.mkdir()
    old.write_text("{}")
    run(tmp_path, BACKENDS="torch", SHAPE="stories260k")
    assert not old.exists()


def test_all_steps_together_end_within_ten_minutes() -> None:
    found = re.findall(r'^ *step "?([\w$-]+)"? (\d+) ', SCRIPT.read_text(), re.MULTILINE)
    assert [name for name, _ in found] == [
        "doctor", "tests", "tune", "gpu-kernels", "decode-$backend", "gpu-peers",
    ]  # fmt: skip
    assert sum(int(limit) * (3 if "$" in name else 1) for name, limit in found) < 600

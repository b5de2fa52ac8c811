"""`llama2gpu kernels` on a backend of one toy kernel, and on the real one where it stands."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from llama2gpu.backends import available, backend_class
from llama2gpu.cli.main import program
from llama2gpu.config import Config
from llama2gpu.kernels import cuda_compile
from llama2gpu.kernels.arch import EVERY_ARCH
from llama2gpu.kernels.cuda_compile import missing_compiler
from llama2gpu.kernels.launch import INTERPRETED
from llama2gpu.measure import kernels, shapes
from llama2gpu.measure.kernel_work import OPS, WEIGHTS, works
from tests.measure.toy_kernels import ToyBackend

ROOT = Path(__file__).resolve().parents[2]
SMALL = Config(
    dim=1024, hidden=2048, layers=1, heads=8, kv_heads=2, head_dim=128, vocab=512, context=2048
)
FIELDS = [
    "op", "kernel", "variant", "default", "weight", "m", "n", "k", "case", "arch", "registers",
    "spill_bytes", "shared_bytes", "shared_limit", "load_bits", "barriers_in_loop", "matrix_op",
    "instr_per_weight", "bandwidth_bound",
]  # fmt: skip

compiled = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET is set: nothing is compiled")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.SHAPES, "small", SMALL)


@pytest.fixture
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, since another would not know the toy."""
    monkeypatch.setattr(kernels, "backend_class", lambda name: {"triton": ToyBackend}[name])
    monkeypatch.setattr(kernels, "VARIANTS", {"default": {}})
    monkeypatch.setattr(os, "cpu_count", lambda: 1)


def call(*args: str) -> Result:
    return CliRunner().invoke(program, ["kernels", *args])


def inspect(*args: str) -> Any:
    options = ("--shape", "small", "--weight", "dense", "--backend", "triton", "--json")
    result = call("inspect", *options, *args)
    assert (result.exit_code, result.stderr) == (0, "")
    return json.loads(result.stdout)


@compiled
@pytest.mark.usefixtures("_toy")
def test_json() -> None:
    first, second = inspect("--op", "linear", "--tokens", "1", "--arch", "sm_90,gfx942")
    assert list(first) == list(second) == FIELDS
    assert (first["op"], first["kernel"], first["case"]) == ("linear", "gemv_kernel", "decode")
    assert (first["m"], first["n"], first["k"], first["weight"]) == (1, 2048, 1024, "dense")
    assert (first["variant"], first["default"]) == ("default", True)
    assert (first["arch"], second["arch"]) == ("sm_90", "gfx942")
    assert (first["load_bits"], first["spill_bytes"], first["barriers_in_loop"]) == (128, 0, 0)
    assert 1 < first["instr_per_weight"] < 6
    assert set(first["bandwidth_bound"]) == {"H200", "H100"}
    assert 0 < first["bandwidth_bound"]["H200"] <= 1


@compiled
@pytest.mark.usefixtures("_toy")
def test_bound_is_of_the_instructions() -> None:
    (row,) = inspect("--op", "linear", "--tokens", "1", "--arch", "sm_100")
    budget = 148 * 128 * 1.965e9 * 2 / (0.9 * 8e12)
    wanted = min(1, budget / row["instr_per_weight"])
    assert row["bandwidth_bound"] == {"B200": pytest.approx(wanted)}


@compiled
@pytest.mark.usefixtures("_toy")
def test_prompt_has_no_bound() -> None:
    (row,) = inspect("--op", "linear", "--tokens", "128")
    assert (row["m"], row["case"], row["bandwidth_bound"]) == (128, "prefill", {})


@compiled
@pytest.mark.usefixtures("_toy")
def test_op_that_launches_nothing_has_no_row() -> None:
    assert inspect("--op", "rms_norm") == []


@compiled
@pytest.mark.usefixtures("_toy")
def test_table() -> None:
    options = ("--shape", "small", "--weight", "dense", "--op", "linear", "--backend", "triton")
    result = call("inspect", *options, "--arch", "sm_90,gfx942")
    lines = result.stdout.splitlines()
    assert (result.exit_code, result.stderr) == (0, "")
    assert max(map(len, lines)) <= 100
    assert [line.split()[0] for line in lines if "shared memory" in line] == ["sm_90,", "gfx942,"]
    (first, *_) = [line.split() for line in lines if line.split()[:2] == ["gemv", "1"]]
    (row, *_) = inspect("--op", "linear")
    assert first[2:4] == ["dense", "2048×1024"]
    assert first[4] == str(row["registers"])
    assert f"{row['instr_per_weight']:.2f}" in first


@pytest.mark.skipif(bool(missing_compiler()), reason=missing_compiler())
def test_cuda_c() -> None:
    options = ("--shape", "small", "--weight", "int4", "--op", "linear", "--tokens", "1")
    result = call("inspect", *options, "--backend", "cupy", "--arch", "sm_75,sm_90", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    rows = json.loads(result.stdout)
    found = [(row["kernel"], row["variant"], row["arch"], row["default"]) for row in rows]
    assert found == [("linear", "cuda-c", "sm_75", True), ("linear", "cuda-c", "sm_90", False)]
    assert all(row["load_bits"] == 128 and row["spill_bytes"] == 0 for row in rows)
    table = call("inspect", *options, "--backend", "cupy", "--arch", "sm_75")
    assert "linear.cu" in table.stdout


@compiled
@pytest.mark.usefixtures("_toy")
def test_without_the_compiler_of_cuda_c(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        cuda_compile, "missing_compiler", lambda: "NVRTC is not at hand: pip install x"
    )
    options = ("--shape", "small", "--weight", "dense", "--op", "linear", "--tokens", "1")
    result = call("inspect", *options, "--json")
    assert result.stderr == (
        "llama2gpu: without the CUDA C kernels: NVRTC is not at hand: pip install x\n"
    )
    assert {row["variant"] for row in json.loads(result.stdout)} == {"default"}
    assert call("inspect", *options, "--json", "--quiet").stderr == ""
    monkeypatch.setattr(kernels, "backend_class", backend_class)
    alone = call("inspect", *options, "--backend", "cupy")
    assert alone.exit_code == 1
    assert alone.stderr == "llama2gpu: error: NVRTC is not at hand: pip install x\n"


@pytest.mark.usefixtures("_toy")
def test_list() -> None:
    arguments = ("list", "--shape", "small", "--weight", "dense", "--op", "linear,rms_norm")
    result = call(*arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    (line,) = result.stdout.splitlines()[1:]
    assert line.split()[:4] == ["linear", "gemv", "dense", "1,16,128"]
    assert "Rows times a vector" in line
    assert json.loads(call(*arguments, "--json").stdout) == [
        {
            "op": "linear",
            "kernel": "gemv_kernel",
            "summary": "Rows times a vector, summed in each lane, or by all of them in every "
            "round.",
            "weights": ["dense"],
            "tokens": [1, 16, 128],
        }
    ]


@pytest.mark.usefixtures("_toy")
@pytest.mark.parametrize(
    ("option", "value", "known"),
    [
        ("--op", "linear,conv", OPS),
        ("--arch", "sm_60", EVERY_ARCH),
        ("--backend", "torch", ("triton", "cupy")),
        ("--shape", "gpt2", shapes.SHAPES),
        ("--weight", "int3", WEIGHTS),
        ("--context", "4096", ["2048"]),
        ("--op", "", OPS),
    ],
)
def test_unknown_name(option: str, value: str, known: Any) -> None:
    arguments = [sys.executable, "-c", MAIN, "kernels", "inspect"]
    if option == "--context":
        known, value = ["4096"], "5000"
    done = subprocess.run([*arguments, option, value], cwd=ROOT, capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert line.startswith("llama2gpu: error: ")
    assert all(name in line for name in known if name != "small")


MAIN = "from llama2gpu.cli.main import main; main()"


@pytest.mark.parametrize("value", ["0", "1,x", ""])
def test_wrong_numbers(value: str) -> None:
    result = call("inspect", "--tokens", value)
    assert result.exit_code == 2
    assert "such as 1,16,128" in result.stderr


def test_interpreter_compiles_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MAIN, "kernels", "inspect", "--op", "linear", "--json"],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert "unset TRITON_INTERPRET" in line


def test_works_of_all_ops() -> None:
    found = list(works(shapes.SHAPES["llama2-7b"], OPS, WEIGHTS, [1, 16, 128], 512))
    assert {work.op for work in found} == set(OPS)
    assert {(w.n, w.k) for w in found if w.op == "project_add"} == {(4096, 4096), (4096, 11008)}
    assert {w.weight for w in found if w.op == "attention"} == {"int8", "dense"}
    assert {w.m for w in found if w.op == "logits"} == {1, 16}
    by_kind = {w.weight: w.bytes_per_value for w in found if w.op == "qkv"}
    assert by_kind == {"int4": 0.5 + 2 / 128, "int8": 1 + 2 / 4096, "dense": 2}


@compiled
@pytest.mark.skipif("triton" not in available(), reason="the triton backend is not there yet")
def test_processes_give_what_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    todo = works(shapes.SHAPES["llama-1.1b"], ["linear"], ["int4", "dense"], [1, 16], 512)
    jobs = [kernels.Job(work, "sm_80") for work in todo]
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    told: list[int] = []
    many = list(kernels.inspect_all(jobs, lambda done, total, what: told.append(done)))
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert many == list(kernels.inspect_all(jobs))
    assert {row.op for row in many} == {"linear"}
    assert told == [0, 1, 2, 3]

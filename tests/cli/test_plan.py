"""`llama2gpu plan`, as a user meets it."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from llama2gpu import memory, plan_fit
from llama2gpu.checkpoints import RandomCheckpoint
from llama2gpu.checkpoints.save import save_huggingface
from llama2gpu.cli.main import program
from llama2gpu.measure.shapes import SHAPES
from llama2gpu.quant.spec import parse_spec


def plan(*words: object) -> Result:
    return CliRunner().invoke(program, ["plan", *map(str, words)])


def test_table() -> None:
    done = plan("llama2-7b", "--device", "cpu", "--memory", "24", "--backend", "torch")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "weights    13.5 GB  bf16",
        "           3.16 MB  fp32",
        "cache      2.15 GB  4,096 tokens, bf16",
        "scratch    79.2 MB  activations and results of a step",
        "total      15.7 GB  fits: cpu has 24 GB free",
    ]


def test_what_would_fit() -> None:
    done = plan("llama2-7b", "--device", "cpu", "--memory", "12")
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    total = next(i for i, line in enumerate(lines) if line.startswith("total"))
    assert "too much: cpu has 12 GB free" in lines[total]
    proposed = [line.partition("with ")[2] for line in lines[total + 1 :]]
    assert "--quant int8" in proposed
    assert "--quant int4" in proposed
    for flags in proposed:
        again = plan("llama2-7b", "--device", "cpu", "--memory", "12", *flags.split())
        assert again.exit_code == 0, flags


def test_nothing_would_fit() -> None:
    done = plan("llama2-70b", "--device", "cpu", "--memory", "1")
    assert done.exit_code == 1
    assert done.stdout.splitlines()[-1].strip() == (
        "nothing here makes it fit: take a smaller model"
    )


def test_json_of_a_checkpoint() -> None:
    asked = ("--ctx", 300, "--batch", 2, "--kv-dtype", "int8", "--quant", "int8")
    done = plan("stories", "--device", "cpu", "--json", *asked)
    told = json.loads(done.stdout)
    assert done.exit_code == 0
    assert told["fits"] is True
    assert (told["context"], told["batch"], told["changes"]) == (300, 2, [])
    kept = sum(told["weights"].values())
    assert told["total"] == kept + max(told["cache"] + told["scratch"], told["loading"])
    assert set(told["weights"]) == {"int8", "bf16", "fp32"}


def test_where_the_system_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: None)
    done = plan("stories", "--device", "cpu")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1].endswith("how much cpu has free is not known")


def test_run_stops_with_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_fit, "free_memory", lambda device: 9_000_000)
    done = CliRunner().invoke(program, ["run", "--device", "cpu", "--ctx", "384", "-n", "3"])
    assert (done.exit_code, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    total = plan("stories", "--device", "cpu").stdout.splitlines()[-1].split()[1:3]
    assert line.startswith(f"llama2gpu: error: stories takes {' '.join(total)} (bf16 weights ")


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["/nowhere"], 1, "no such file"),
        (["llama2-9b"], 1, "no such file"),
        (["stories", "--ctx", "0"], 2, "--ctx"),
        (["stories", "--batch", "0"], 2, "--batch"),
        (["stories", "--memory", "0"], 2, "--memory"),
        (["stories", "--memory", "nan"], 2, "--memory"),
        (["stories", "--memory", "inf"], 2, "--memory"),
        (["stories", "--memory", "1e300"], 2, "--memory"),
        (["stories", "--quant-head"], 2, "--quant"),
        (["stories", "--quant", "int3"], 2, "int3"),
        (["stories", "--backend", "nope"], 1, "unknown backend"),
    ],
)
def test_mistakes(words: list[str], status: int, message: str) -> None:
    done = plan(*words)
    assert (done.exit_code, done.stdout) == (status, "")
    assert message in done.stderr


def test_what_is_quantized_already(tmp_path: Path) -> None:
    source = RandomCheckpoint(SHAPES["stories260k"], torch.float32, quant=parse_spec("int8"))
    save_huggingface(source, tmp_path / "model")
    assert plan(tmp_path / "model", "--device", "cpu").exit_code == 0
    done = plan(tmp_path / "model", "--device", "cpu", "--quant", "int4")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "quantized already" in done.stderr


def test_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + b"\xff" * 60)
    done = plan(tmp_path / "model.gguf")
    assert done.exit_code == 1
    assert len(done.stderr.splitlines()) == 1

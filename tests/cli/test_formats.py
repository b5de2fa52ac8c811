"""Every command takes every format of one file."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from llama2gpu.checkpoints import open_checkpoint
from llama2gpu.cli.main import program
from tests.checkpoints.awq import write_awq
from tests.checkpoints.gptq import matrices_of
from tests.checkpoints.single_files import (
    byte_vocabulary,
    spelled_bytes,
    write_ggjt,
    write_lmw,
    write_simple_llama,
)
from tests.checkpoints.test_single_files import CONFIG
from tests.checkpoints.writers import random_tensors, write_llama2c
from tests.tokenizer.conftest import pack_llama2c

WORDS = pack_llama2c(spelled_bytes(byte_vocabulary(320)))
TENSORS = random_tensors(CONFIG)

#: A writer of each format, and the name of the format.
DENSE: dict[str, Callable[[Path], Path]] = {
    "ggjt v1": partial(
        write_ggjt,
        config=CONFIG,
        tensors=TENSORS,
        vocabulary=byte_vocabulary(320),
        multiple_of=32,
    ),
    "lmw B": partial(write_lmw, config=CONFIG, tensors=TENSORS, layout="B"),
    "lmw C": partial(write_lmw, config=CONFIG, tensors=TENSORS, layout="C", tokenizer=WORDS),
    "simple-llama v3": partial(write_simple_llama, config=CONFIG, tensors=TENSORS),
}
QUANTIZED: dict[str, Callable[[Path], Path]] = {
    "llama2.c v2": partial(write_llama2c, config=CONFIG, tensors=TENSORS, version=2, group=64),
    "simple-llama v4": partial(write_simple_llama, config=CONFIG, tensors=TENSORS, bits=4),
}
FORMATS = DENSE | QUANTIZED


def called(*arguments: str | Path) -> Result:
    return CliRunner().invoke(program, [*map(str, arguments)])


def answer(*arguments: str | Path) -> Any:
    result = called(*arguments)
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return json.loads(result.stdout)


@pytest.fixture
def model(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A model of the format; where it holds no tokenizer, one lies beside."""
    if request.param not in ("ggjt v1", "lmw C"):
        (tmp_path / "tokenizer.bin").write_bytes(WORDS)
    return FORMATS[request.param](tmp_path / "model.bin")


@pytest.mark.parametrize("model", FORMATS, indirect=True)
def test_inspect_tokenize_and_run(model: Path) -> None:
    facts = answer("inspect", model, "--json")
    assert facts["format"] in FORMATS
    assert facts["tokenizer"]["vocab"] == 320
    assert facts["parameters"] == CONFIG.parameters
    assert (facts["quantization"] is not None) == (facts["format"] in QUANTIZED)
    ids = answer("tokenize", "a b", "--model", model, "--json")["ids"]
    assert ids == [1, 286, 287]
    told = called("run", "a", "--model", model, "-n", "4", "--temperature", "0", "--quiet")
    assert told.exit_code == 0, told.stderr


@pytest.mark.parametrize("model", DENSE, indirect=True)
def test_quantize(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    rows = answer("quantize", model, out, "--quant", "int8", "--json", "--quiet")
    assert len(rows) == 8
    assert all(row["quantized"] for row in rows)
    read = open_checkpoint(out)
    assert read.quantization is not None
    near = open_checkpoint(model).read("layers.1.w2").float()
    assert torch.allclose(read.read("layers.1.w2").float(), near, atol=1e-3)
    assert answer("tokenize", "a b", "--model", out, "--json")["ids"] == [1, 286, 287]


@pytest.mark.parametrize("model", QUANTIZED, indirect=True)
def test_quantized_ones_are_not_quantized_again(model: Path, tmp_path: Path) -> None:
    result = called("quantize", model, tmp_path / "out", "--quant", "int8")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
    assert "is quantized already (int" in result.stderr
    assert not (tmp_path / "out").exists()


def test_awq(tmp_path: Path) -> None:
    facts = answer("inspect", write_awq(tmp_path, matrices_of(zeros=True)), "--json")
    assert facts["quantization"] == "AWQ int4, group 32"


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_ones_are_one_line(tmp_path: Path, name: str) -> None:
    path = FORMATS[name](tmp_path / "model.bin")
    path.write_bytes(path.read_bytes()[:-40])
    for command in (["inspect"], ["run", "a", "--model"], ["tokenize", "a", "--model"]):
        result = called(*command, path)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.count("\n") == 1

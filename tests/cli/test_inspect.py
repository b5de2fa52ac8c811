import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from llama2gpu.checkpoints import tensor_shapes
from llama2gpu.cli.inspect import binary, render
from llama2gpu.cli.main import program
from llama2gpu.config import Config

TINY = Config(
    dim=8, hidden=12, layers=2, heads=2, kv_heads=1, head_dim=4, vocab=264, context=16, tied=True
)
SHAPES = dict(tensor_shapes(TINY))


def inspect(*args: str | Path) -> Result:
    return CliRunner().invoke(program, ["inspect", *map(str, args)])


def facts(*args: str | Path) -> Any:
    result = inspect(*args, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    return json.loads(result.stdout)


def test_json_holds_the_facts(model: Path, tokenizer: Path) -> None:
    found = facts(model)
    assert found["path"] == str(model)
    assert (found["format"], found["dtype"]) == ("llama2.c v0", "float32")
    assert Config(**found["config"]) == TINY
    assert found["parameters"] == TINY.parameters
    assert (found["tensor_count"], found["tensor_bytes"]) == (len(SHAPES), 4 * TINY.parameters)
    assert found["stop_ids"] == [1, 2]
    assert found["tokenizer"]["path"] == str(tokenizer)
    assert found["tokenizer"]["vocab"] == TINY.vocab
    assert "tensors" not in found


def test_json_lists_tensors(model: Path) -> None:
    found = facts(model, "--tensors")["tensors"]
    assert {tensor["name"]: tuple(tensor["shape"]) for tensor in found} == SHAPES
    assert {tensor["dtype"] for tensor in found} == {"float32"}


def test_text_says_the_same(model: Path, tokenizer: Path) -> None:
    result = inspect(model)
    lines = [line.split(maxsplit=1) for line in result.stdout.splitlines()]
    assert (result.exit_code, result.stderr) == (0, "")
    for line in (["format", "llama2.c v0"], ["dim", "8"], ["tied", "yes"], ["vocab", "264"]):
        assert line in lines
    assert f"{TINY.parameters:,}" in result.stdout
    assert "\x1b" not in result.stdout


def test_table_of_tensors_is_aligned(model: Path) -> None:
    rows = inspect(model, "--tensors").stdout.partition("\n\n")[2].splitlines()
    assert [row.split()[0] for row in rows] == ["tensor", *SHAPES]
    assert len({len(row) for row in rows}) == 1
    assert rows[3].split() == ["layers.0.wq", "8", "x", "8", "float32", "256"]


def test_chosen_tokenizer_is_shown(model: Path, tokenizer: Path) -> None:
    chosen = tokenizer.rename(model.with_name("tok264.bin"))
    tokenizer.write_bytes(b"damaged, but not the one that serves")
    found = facts(model)["tokenizer"]
    assert found["path"] in inspect(model).stdout
    assert found["path"] == str(chosen)


def test_missing_tokenizer_is_a_fact(model: Path) -> None:
    assert facts(model)["tokenizer"].keys() == {"error"}
    result = inspect(model)
    assert result.exit_code == 0
    assert "no tokenizer" in result.stdout


@pytest.mark.parametrize("args", [[], ["--json"], ["--tensors"]])
def test_missing_checkpoint_is_one_line(tmp_path: Path, args: list[str]) -> None:
    result = inspect(tmp_path / "none.bin", *args)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("llama2gpu: error: ")
    assert result.stderr.count("\n") == 1


def test_damaged_checkpoint_is_one_line(model: Path) -> None:
    model.write_bytes(model.read_bytes()[:-3])
    result = inspect(model)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1


def test_published_checkpoint(stories: Path) -> None:
    found = facts(stories / "stories260K.bin")
    assert (found["parameters"], found["config"]["hidden"]) == (260_032, 172)
    assert found["tokenizer"]["vocab"] == 512


def test_nested_facts_are_indented() -> None:
    facts = {"rope_scaling": {"type": "llama3", "factor": 8.0, "mscale": None}}
    assert [click.unstyle(line) for line in render(facts)] == [
        "rope scaling",
        "  type    llama3",
        "  factor  8",
        "  mscale  none",
    ]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1_040_128, "1016 KiB"),
        (5 << 30, "5 GiB"),
        (3 << 40, "3 TiB"),
        (5 << 50, "5120 TiB"),
    ],
)
def test_binary_units(size: int, text: str) -> None:
    assert binary(size) == text

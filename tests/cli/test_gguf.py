"""The commands on a GGUF file, which has its tokenizer within."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from gguf import GGMLQuantizationType as Kind

from llama2gpu.checkpoints import open_checkpoint
from llama2gpu.checkpoints.open import SHIPPED
from llama2gpu.cli.main import program
from llama2gpu.quant import Int8
from tests.checkpoints.gguf_files import spm_fields
from tests.model.test_gguf import write


@pytest.fixture(params=[Kind.Q4_0, Kind.Q8_0], ids=lambda kind: kind.name)
def shipped(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return written(tmp_path, request.param)


def written(folder: Path, kind: Kind) -> Path:
    """The model that comes with the package."""
    source = open_checkpoint(SHIPPED["stories"])
    fields = spm_fields(SHIPPED["stories"] / "tokenizer.model")
    return write(folder / "stories.gguf", source, kind, fields)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(program, arguments)


def run(*arguments: str) -> Result:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result


def test_a_file_alone_is_a_model(shipped: Path) -> None:
    kind = "Q4_0" if "Q4_0" in str(open_checkpoint(shipped).quantization) else "Q8_0"
    shown = run("inspect", str(shipped), "--tensors").stdout
    assert "GGUF v3" in shown
    assert kind in shown.split("config")[0]
    assert "format   SentencePiece" in shown
    ids = run("tokenize", "--model", str(shipped), "--ids", "Once upon").stdout
    assert ids == run("tokenize", "--model", "stories", "--ids", "Once upon").stdout
    told = run("run", "--model", str(shipped), "--temperature", "0", "-n", "8", "Once upon a")
    assert told.stdout.startswith("Once upon a time")


def test_what_is_quantized_is_not_quantized_again(shipped: Path, tmp_path: Path) -> None:
    result = invoke("quantize", str(shipped), str(tmp_path / "out"))
    assert result.exit_code == 1
    assert "is quantized already (Q" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_dense_one_becomes_a_quantized_folder(tmp_path: Path) -> None:
    published = written(tmp_path, Kind.F16)
    out = str(tmp_path / "out")
    run("quantize", str(published), out, "--quant", "int8", "--quant-group", "32", "--no-errors")
    folder = open_checkpoint(tmp_path / "out")
    assert isinstance(folder.weight("layers.0.w1"), Int8)
    assert folder.config == open_checkpoint(published).config
    ids = [
        run("tokenize", "--model", str(model), "--ids", "Lily and 漢").stdout
        for model in (published, tmp_path / "out")
    ]
    assert ids[0] == ids[1]
    assert torch.equal(
        folder.read("norm").float(), open_checkpoint(published).read("norm").half().float()
    )

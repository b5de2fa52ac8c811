"""`llama2gpu convert`, as a user meets it."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from llama2gpu.checkpoints import open_checkpoint
from llama2gpu.checkpoints.convert import FORMATS
from llama2gpu.cli.main import program
from tests.model.test_golden import GREEDY
from tests.quant.models import CONFIG, random_model

LOSSLESS = [form for form in FORMATS if form != "llama2c-v2"]


def run(*words: object) -> Result:
    return CliRunner().invoke(program, [str(word) for word in words])


def convert(*words: object) -> Result:
    result = run("convert", *words)
    assert result.exit_code == 0, result.stderr
    return result


def told(path: Path, *words: object) -> str:
    """What a model tells greedily."""
    how = ["-m", path, "--device", "cpu", "-t", 0, "-n", 256, "-q", *words]
    result = run("run", *how, "")
    assert result.exit_code == 0, result.stderr
    return result.stdout.removesuffix("\n")


@pytest.mark.parametrize("form", LOSSLESS)
def test_golden_text(form: str, stories: Path, tmp_path: Path) -> None:
    """From llama2.c to each format, from it to every other, the tokenizer among it."""
    source = [stories / "stories260K.bin", "--tokenizer", stories / "tok512.bin"]
    first = tmp_path / "first" / "m"
    result = convert(source[0], first, *source[1:], "--to", form, "--json")
    facts = json.loads(result.stdout)
    assert (facts["lossless"], facts["rounded"], facts["error"]) == (True, 0, 0)
    assert (facts["format"], facts["tensors"], facts["notes"]) == (form, 47, [])
    assert facts["bytes"] == sum(Path(path).stat().st_size for path in facts["files"])
    assert told(first) == GREEDY
    for other in LOSSLESS:
        second = tmp_path / other / "m"
        convert(first, second, "--to", other)
        assert told(second) == GREEDY
        if other == "llama2c-v0":
            assert second.read_bytes() == (stories / "stories260K.bin").read_bytes()
            beside = second.with_name("tokenizer.bin")
            assert [*run("tokenize", "--tokenizer", beside, "--json", GREEDY).stdout] == [
                *run("tokenize", "--tokenizer", stories / "tok512.bin", "--json", GREEDY).stdout
            ]


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("llama2c-v2", []),
        ("gguf", ["--quant", "q8_0"]),
        ("gguf", ["--quant", "q4_0"]),
        ("gguf", ["--quant", "q4_1"]),
        ("gguf", ["--dtype", "f16"]),
    ],
    ids=str,
)
def test_lossy_formats_tell_the_same_on_all_backends(
    form: str, words: list[str], stories: Path, tmp_path: Path
) -> None:
    source = [stories / "stories260K.bin", "--tokenizer", stories / "tok512.bin"]
    result = convert(source[0], tmp_path / "m", *source[1:], "--to", form, *words)
    assert "rounded (relative error 0.0" in result.stdout or words == ["--dtype", "f16"]
    numpy = told(tmp_path / "m", "--backend", "numpy", "--dtype", "fp32")
    assert numpy == told(tmp_path / "m", "--backend", "torch", "--dtype", "fp32")
    assert numpy.startswith("Once upon a time, there was a little girl")
    # the same weights as floats tell it too
    convert(tmp_path / "m", tmp_path / "floats", "--to", "hf", "--quant", "none", "--dtype", "fp32")
    assert told(tmp_path / "floats", "--backend", "numpy") == numpy


def test_shipped_model(tmp_path: Path) -> None:
    for form in LOSSLESS:
        result = convert("stories", tmp_path / form / "m", "--to", form)
        assert result.stdout.endswith("38 tensors, all exact\n")
        assert result.stderr == ""
        found, source = open_checkpoint(tmp_path / form / "m"), open_checkpoint("stories")
        for info in source.tensors():
            assert (found.read(info.name).float() == source.read(info.name).float()).all()


def mistake(result: Result, message: str, status: int = 1) -> None:
    assert (result.exit_code, result.stdout) == (status, "")
    assert message in result.stderr
    if status == 1:
        assert result.stderr.startswith("llama2gpu: error: ")
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Missing option '--to'"),
        (["--to", "onnx"], "'onnx' is not one of"),
        (["--to", "gguf", "--quant", "q2_k"], "'q2_k' is not one of"),
        (["--to", "gguf", "--dtype", "int8"], "'int8' is not one of"),
        (["--to", "hf", "--quant", "q8_0"], "`llama2gpu quantize` makes"),
        (["--to", "llama2c-v2", "--quant", "q8_0"], "llama2c-v2 is int8"),
        (["--to", "llama2c-v2", "--quant", "none"], "llama2c-v2 is int8"),
        (["--to", "llama2c-v1", "--dtype", "fp16"], "llama2c-v1 has its own"),
    ],
    ids=" ".join,
)
def test_wrong_usage(words: list[str], message: str, tmp_path: Path) -> None:
    mistake(run("convert", tmp_path / "in", tmp_path / "out", *words), message, 2)
    assert list(tmp_path.iterdir()) == []


def test_mistakes(tmp_path: Path) -> None:
    out = ["--to", "gguf"]
    mistake(run("convert", tmp_path / "nowhere", tmp_path / "out", *out), "nowhere")
    random_model(tmp_path / "in")
    mistake(run("convert", tmp_path / "in", tmp_path / "in", *out), "no regular file")
    mistake(run("convert", tmp_path / "in", tmp_path / "in", "--to", "hf"), "holds the model")
    weights = tmp_path / "in" / "model.safetensors"
    mistake(run("convert", tmp_path / "in", weights, *out, "--overwrite"), "is read by this")
    tokenizer = ["--tokenizer", tmp_path / "none"]
    mistake(run("convert", tmp_path / "in", tmp_path / "out", *out, *tokenizer), "none")
    theta = ["--rope-theta", 5e5, "--to", "llama2c-v0"]
    mistake(run("convert", tmp_path / "in", tmp_path / "out", *theta), "rope_theta of 500000")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("form", ["hf", "gguf"])
@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
def test_rope_scaling_is_written(form: str, kind: str, tmp_path: Path) -> None:
    convert("stories", tmp_path / "out", "--to", form, "--rope-scaling", f"{kind}:4")
    wanted = open_checkpoint("stories", rope_scaling=f"{kind}:4").config
    found = open_checkpoint(tmp_path / "out").config
    assert (found.context, found.rope_scaling) == (4 * 384, wanted.rope_scaling)


def test_without_a_tokenizer(tmp_path: Path) -> None:
    random_model(tmp_path / "in")
    for form in FORMATS:
        result = convert(tmp_path / "in", tmp_path / form, "--to", form)
        notes = result.stderr.splitlines()
        assert notes[0].startswith("note: no tokenizer beside the checkpoint")
        assert len(notes) == 1 + (form == "llama2c-v2")
        assert open_checkpoint(tmp_path / form).config == CONFIG
        again = run("convert", tmp_path / "in", tmp_path / form, "--to", form, "-q")
        mistake(again, "--overwrite")
        assert convert(
            tmp_path / "in", tmp_path / form, "--to", form, "-q", "--overwrite"
        ).stderr == ""  # fmt: skip


def test_what_quantize_wrote(tmp_path: Path) -> None:
    """A GPTQ folder's integers become GGUF's, and nothing is rounded once more."""
    asked = ["--quant", "int4", "--quant-group", 32, "--quant-head", "-q", "--no-errors"]
    assert run("quantize", "stories", tmp_path / "in", *asked).exit_code == 0
    result = convert(tmp_path / "in", tmp_path / "m.gguf", "--to", "gguf", "--json")
    assert json.loads(result.stdout)["lossless"]
    assert "Q4_0" in (open_checkpoint(tmp_path / "m.gguf").quantization or "")
    how = ["-t", 0, "-n", 40, "-q", "--device", "cpu", "--dtype", "fp32", "Lily"]
    texts = [run("run", "-m", tmp_path / name, *how).stdout for name in ("in", "m.gguf")]
    assert texts[0] == texts[1] != ""

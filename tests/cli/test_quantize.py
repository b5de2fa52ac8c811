"""`llama2gpu quantize` and `--quant`, as a user meets them."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from llama2gpu.checkpoints import huggingface_write, open_checkpoint
from llama2gpu.cli import quant_options
from llama2gpu.cli.main import program
from llama2gpu.quant.spec import METHODS
from tests.model.test_golden import GREEDY
from tests.quant.models import CONFIG, random_model

MATRICES = 5 * 4  # layers of stories260K, and the matrices of each


def run(*words: object) -> Result:
    return CliRunner().invoke(program, [str(word) for word in words])


@pytest.fixture
def model(stories: Path) -> list[object]:
    return [stories / "stories260K.bin", "--tokenizer", stories / "tok512.bin", "--device", "cpu"]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(GREEDY * 8)
    return path


@pytest.mark.parametrize(
    ("asked", "became"),
    [
        ([], "int4, group 64"),
        (["--quant", "int8"], "int8, row"),
        (["--quant", "int8", "--quant-group", "32", "--quant-head"], "int8, group 32"),
        (["--quant-group", "32", "--quant-method", "hqq", "--quant-zeros"], "int4, group 32"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_folder_tells_what_quant_tells(
    model: list[object], asked: list[str], became: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = run("quantize", model[0], out, *model[1:], *asked)
    assert (result.exit_code, result.stderr) == (0, "")
    assert became in result.stdout
    kind = asked if "--quant" in asked else ["--quant", "int4", *asked]
    how = ["-t", "0", "-n", "40", "-q", "Lily"]
    loaded = run("run", "-m", out, "--device", "cpu", *how)
    direct = run("run", "-m", model[0], *model[1:], *kind, *how)
    assert loaded.exit_code == direct.exit_code == 0
    assert loaded.stdout == direct.stdout
    assert loaded.stdout.startswith("Lily")


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_calibrated(model: list[object], text: Path, method: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("quantize", model[0], out, *model[1:], "--quant-method", method,
                 "--calibrate", text, "--json", "-q")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    rows = json.loads(result.stdout)
    assert len(rows) == MATRICES
    assert all(0 < row["error"] < 0.3 for row in rows if row["quantized"])
    assert {row["name"].rpartition(".")[2] for row in rows if not row["quantized"]} == {
        "w_13",
        "w_2",
    }
    assert run("run", "-m", out, "-n", "5", "-q", "--device", "cpu").exit_code == 0


def test_methods_are_those_that_exist() -> None:
    assert tuple(quant_options.METHODS) == METHODS


def test_inspect_knows_it(tmp_path: Path) -> None:
    random_model(tmp_path / "in")
    assert run("quantize", tmp_path / "in", tmp_path / "out", "-q").exit_code == 0
    assert "GPTQ int4" in run("inspect", tmp_path / "out").stdout


def test_without_errors(tmp_path: Path) -> None:
    random_model(tmp_path / "in")
    result = run("quantize", tmp_path / "in", tmp_path / "out", "--no-errors", "--json", "-q")
    assert {row["error"] for row in json.loads(result.stdout)} == {None}


def test_what_stays_dense_is_said_on_load(model: list[object]) -> None:
    result = run("run", "-m", model[0], *model[1:], "--quant", "int4", "-n", "1")
    headline, note, _ = result.stderr.splitlines()
    assert "quantized to int4, group 64" in headline
    assert note == (
        "10 of 20 matrices stay dense "
        "(w_13: 172 rows are no multiple of 8; w_2: 172 columns are no multiple of 8)"
    )


def mistake(result: Result, message: str, status: int = 1) -> None:
    assert (result.exit_code, result.stdout) == (status, "")
    assert message in result.stderr
    if status == 1:
        assert result.stderr.startswith("llama2gpu: error: ")
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "can't read"),
        (b"", "is empty"),
        (b" \n ", "is empty"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"a\0b", "NUL bytes"),
        (b"Once upon a time", "fewer than the 512 of one window"),
    ],
)
@pytest.mark.parametrize("command", ["quantize", "run"])
def test_calibration_text(
    model: list[object], command: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    path, out = tmp_path / "text", tmp_path / "out"
    if content is not None:
        path.write_bytes(content)
    before = set(tmp_path.iterdir())
    asked = ["--quant", "int4", "--quant-method", "gptq", "--calibrate", path]
    place = [model[0], out] if command == "quantize" else ["-m", model[0]]
    mistake(run(command, *place, *model[1:], *asked), message)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--quant", "none"], "nothing to do"),
        (["--quant", "int2"], "'int2' is not one of"),
        (["--quant-method", "magic"], "'magic' is not one of"),
        (["--quant-group", "16"], "'16' is not one of"),
        (["--quant-method", "gptq"], "needs --calibrate"),
        (["--calibrate", "x"], "--calibrate is for"),
        (["--quant", "int4", "--quant-group", "row"], "--quant-group row is for --quant int8"),
        (["--quant", "none", "--quant-method", "rtn"], "--quant-method needs --quant"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage(words: list[str], message: str, tmp_path: Path) -> None:
    mistake(run("quantize", tmp_path / "in", tmp_path / "out", *words), message, 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--quant", "int8", "--quant-method", "hqq"], "is for int4"),
        (["--quant", "int8", "--quant-zeros"], "zero points are for int4"),
        (["--backend", "nonsense"], "unknown backend"),
        (["--tokenizer", "/nonexistent"], "/nonexistent"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_exist(words: list[str], message: str, tmp_path: Path) -> None:
    random_model(tmp_path / "in")
    mistake(run("quantize", tmp_path / "in", tmp_path / "out", *words), message)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("flag", ["--quant-head", "--quant-zeros"])
def test_options_without_quant(flag: str, model: list[object]) -> None:
    mistake(run("run", "-m", *model, flag), "needs --quant", 2)


def test_places(tmp_path: Path) -> None:
    random_model(tmp_path / "in")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("precious")
    mistake(run("quantize", tmp_path / "in", tmp_path / "full"), "exists")
    mistake(run("quantize", tmp_path / "in", tmp_path / "full", "--overwrite"), "did not write")
    mistake(run("quantize", tmp_path / "in", tmp_path / "in"), "holds the model that is read")
    mistake(run("quantize", tmp_path / "in", tmp_path / "in", "--overwrite"), "holds the model")
    mistake(run("quantize", tmp_path / "nowhere", tmp_path / "out"), "nowhere")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "in"]
    out = tmp_path / "out"
    assert run("quantize", tmp_path / "in", out, "-q").exit_code == 0
    mistake(run("quantize", tmp_path / "in", out, "-q"), "--overwrite")
    again = run("quantize", tmp_path / "in", out, "--overwrite", "--quant", "int8", "-q")
    assert again.exit_code == 0
    assert "int8" in (open_checkpoint(out).quantization or "")
    mistake(run("quantize", out, tmp_path / "twice", "-q"), "quantized already")
    assert not (tmp_path / "twice").exists()


def test_quantized_twice(model: list[object], tmp_path: Path) -> None:
    assert run("quantize", model[0], tmp_path / "out", *model[1:], "-q").exit_code == 0
    message = "the checkpoint is quantized already (GPTQ int4, a scale a row, or as each matrix "
    mistake(run("run", "-m", tmp_path / "out", "--quant", "int8", "-q"), message)


@pytest.mark.parametrize(
    ("tensor", "name"),
    [
        ("model.embed_tokens", "embed"),
        ("model.layers.1.input_layernorm", "layers.1.attention_norm"),
        ("model.layers.0.post_attention_layernorm", "layers.0.ffn_norm"),
        ("model.layers.1.mlp.up_proj", "layers.1.w_13"),
        ("model.norm", "norm"),
        ("lm_head", "output"),
    ],
)
@pytest.mark.parametrize("wrong", [torch.nan, -torch.inf])
def test_weights_that_are_no_numbers(tensor: str, name: str, wrong: float, tmp_path: Path) -> None:
    random_model(tmp_path / "in")
    path = tmp_path / "in" / "model.safetensors"
    tensors = load_file(path)
    tensors[f"{tensor}.weight"].view(-1)[3] = wrong
    save_file(tensors, path, metadata={"format": "pt"})
    message = f"error: {name}: the weights hold NaN or infinity"
    mistake(run("quantize", tmp_path / "in", tmp_path / "out", "-q"), message)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    random_model(tmp_path / "in")
    monkeypatch.setattr(huggingface_write, "save_file", full)
    mistake(run("quantize", tmp_path / "in", tmp_path / "out", "-q"), "No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_progress_goes_to_stderr_alone(tmp_path: Path) -> None:
    random_model(tmp_path / "in")
    result = run("quantize", tmp_path / "in", tmp_path / "out", "--json")
    assert len(json.loads(result.stdout)) == 4 * CONFIG.layers

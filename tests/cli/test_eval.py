"""`llama2gpu eval`, as a user meets it; the tiny model of zeros finds all 264 tokens alike."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from llama2gpu.api import Llama, load
from llama2gpu.cli.main import program
from llama2gpu.measure import quality


def run(*words: object, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(program, [str(word) for word in words], input=stdin)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("ab ab\n<|endoftext|>\n" + "ab" * 30)
    return path


@pytest.fixture
def tiny(model: Path, tokenizer: Path) -> list[str]:
    return ["--model", str(model), "--tokenizer", str(tokenizer), "--device", "cpu"]


def test_table(text: Path, tiny: list[str]) -> None:
    result = run("eval", text, *tiny, "--kv-dtype", "int8", "--threads", "1")
    assert result.exit_code == 0
    summary, _, heading, _, full, cache = result.stdout.splitlines()
    bits = 37 * math.log2(264) / 65  # 35 tokens and two ends
    assert summary == f"perplexity 264.0000 ± 0.0000 · {bits:.4f} bits per byte of 65"
    assert heading.split()[:2] == ["weights", "perplexity"]
    assert full.split()[:2] == ["fp32", "264.0000"]
    assert " ".join(cache.split()) == (
        "int8 cache 264.0000 +0.00 ± 0.00 0.00000 0.00000 100.00 12.3 kB"
    )
    assert max(map(len, result.stdout.splitlines())) <= 100
    assert result.stderr.startswith("model.bin · ")
    assert "windows of at most 16 · backend torch · dtype fp32" in result.stderr


def test_the_longest_names_fit_in_100_columns(
    text: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def dense(quant: object = None, calibration: object = None, **rest: Any) -> Llama:
        return load(**rest)

    monkeypatch.setattr(quality, "load", dense)
    words = ["--quant", "int4:128:gptq+zeros+head", "--calibrate", tiny[1], "--kv-dtype", "int8"]
    row = run("eval", text, *tiny, *words).stdout.splitlines()[-1]
    assert row.startswith("int4:128:gptq+zeros+head, int8 cache ")
    assert row.rstrip().endswith("kB")
    assert len(row) <= 100


def test_json(text: Path, tiny: list[str]) -> None:
    result = run("eval", text, *tiny, "--json", "--quiet", "--context", "5", "--tokens", "12")
    answer = json.loads(result.stdout)
    assert result.stderr == ""
    assert (answer["tokens"], answer["context"], answer["windows"]) == (12, 5, 3)
    assert (answer["stride"], answer["other_pieces"]) == (5, {})
    (row,) = answer["rows"]
    assert row["perplexity"] == pytest.approx(264)
    assert row["bits_per_byte"] == pytest.approx(12 * math.log2(264) / answer["bytes"])
    assert {"perplexity_error", "divergence_99", "change_error"} <= set(row)
    assert {"model", "backend", "dtype", "machine"} <= set(answer)


def test_stride(text: Path, tiny: list[str]) -> None:
    words = ["--context", "8", "--stride", "3"]
    result = run("eval", text, *tiny, *words)
    assert "windows of at most 8 by a stride of 3" in result.stderr
    answer = json.loads(run("eval", text, *tiny, *words, "--json", "-q").stdout)
    assert (answer["stride"], answer["tokens"]) == (3, 37)


def test_past_the_context_one_line_warns(text: Path, tiny: list[str]) -> None:
    words = ["--context", "20", "--kv-dtype", "int8", "--against", tiny[1]]
    result = run("eval", text, *tiny, *words)
    assert result.exit_code == 0
    warned, heading = result.stderr.splitlines()
    assert "a context of 20 was asked for, but 'model.bin' has one of 16" in warned
    assert "windows of at most 20" in heading
    assert run("eval", text, *tiny, *words, "--quiet").stderr == ""


def test_rope_scaling(text: Path, tiny: list[str]) -> None:
    result = run("eval", text, *tiny, "--rope-scaling", "yarn:2")
    assert "windows of at most 32 ·" in result.stderr


def test_against(text: Path, tiny: list[str], tmp_path: Path) -> None:
    folder = tmp_path / ("a-folder-whose-name-is-long" * 4)
    folder.mkdir()
    other = shutil.copy(tiny[1], folder / "other.bin")
    words = shutil.copy(tiny[3], folder / "tokenizer.bin")
    data = bytearray(Path(words).read_bytes())
    assert data.endswith(b"ab")
    Path(words).write_bytes(data[:-1] + b"c")
    result = run("eval", text, *tiny, "--against", other, "--against", other)
    assert result.exit_code == 0
    first, *rest = result.stdout.splitlines()[4:]
    assert first.startswith("fp32 ")
    assert "".join(line.split()[0] for line in rest) == str(other)
    assert "+0.00 ± 0.00" in rest[0]
    assert max(map(len, result.stdout.splitlines())) <= 100
    told = "its own tokenizer reads 1 of the ids differently; the text is in those of model.bin"
    assert result.stderr.splitlines()[1] == f"{other}: {told}"


def test_against_another_vocabulary(text: Path, tiny: list[str]) -> None:
    result = run("eval", text, *tiny, "--against", "stories")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "stories has a vocabulary of 2048, which can't be compared with the 264" in result.stderr
    assert result.stderr.count("\n") == 1


def test_standard_input(text: Path, tiny: list[str]) -> None:
    piped = run("eval", "-", *tiny, "--json", stdin=text.read_bytes())
    assert json.loads(piped.stdout) == json.loads(run("eval", text, *tiny, "--json").stdout)


@pytest.mark.parametrize(
    ("data", "words", "message"),
    [
        (b"", [], "is empty"),
        (b" \n\n", [], "is empty"),
        (b"<|endoftext|>\n", [], "no text between"),
        (b"a\0b", [], "NUL bytes"),
        (b"a\xffb", [], "not UTF-8 (byte 1)"),
        (b"ab", ["--context", str(2**30 + 1)], "give 1 to 1073741824; the model has 16"),
        (b"ab", ["--stride", "17"], "give 1 to 16"),
        (b"ab", ["--against", "/nonexistent"], "/nonexistent"),
        (b"ab", ["--model", "/nonexistent"], "/nonexistent"),
        (b"ab", ["--tokenizer", "/nonexistent"], "/nonexistent"),
        (b"ab", ["--backend", "nonsense"], "unknown backend"),
    ],
)
def test_mistakes_are_one_line(
    data: bytes, words: list[str], message: str, tiny: list[str], text: Path
) -> None:
    text.write_bytes(data)
    for source in (text, "-"):
        result = run("eval", source, *tiny, *words, stdin=data)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("llama2gpu: error: ")
        assert message in result.stderr
        assert result.stderr.count("\n") == 1


def test_a_missing_text(tmp_path: Path, tiny: list[str]) -> None:
    result = run("eval", tmp_path / "none.txt", *tiny)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "none.txt: No such file" in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--quant", "int2"], "int2"),
        (["--quant", "int4:48"], "48"),
        (["--quant", "int4:gptq"], "needs --calibrate"),
        (["--quant", "int8", "--quant", "int4:32:awq+head"], "needs --calibrate"),
        (["--quant", "int8", "--calibrate", "x"], "gptq or awq"),
        (["--tokens", "0"], "--tokens"),
        (["--context", "0"], "--context"),
        (["--stride", "0"], "--stride"),
        (["--kv-dtype", "int4"], "--kv-dtype"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage(text: Path, tiny: list[str], words: list[str], message: str) -> None:
    result = run("eval", text, *tiny, *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_a_text_does_not_judge_itself(text: Path, tiny: list[str]) -> None:
    result = run("eval", text, *tiny, "--quant", "int4:gptq", "--calibrate", text)
    assert result.exit_code == 2
    assert "TEXT itself" in result.stderr


def test_quantized(text: Path, stories: Path) -> None:
    words = ["--model", stories / "stories260K.bin", "--device", "cpu", "--quant", "int4:32"]
    result = run("eval", text, *words)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].startswith("int4:32 ")
    assert "int4:32: 10 of 20 matrices stay dense" in result.stderr

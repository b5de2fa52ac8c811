import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from llama2gpu.cli.main import program

ROOT = Path(__file__).resolve().parents[2]
SPACE, A, _, SPACE_A = range(259, 263)


def tokenize(*args: str | Path, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(program, ["tokenize", *map(str, args)], input=stdin)


def ids(*args: str | Path, stdin: str | bytes | None = None) -> list[int]:
    result = tokenize("--ids", *args, stdin=stdin)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.count("\n") == 1
    return [int(id) for id in result.stdout.split()]


def test_lines_of_id_and_piece(tokenizer: Path) -> None:
    result = tokenize("ab\n", "--tokenizer", tokenizer)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == ['  1  "<s>"', '262  " a"', '261  "b"', ' 13  "\\n"']


def test_json(tokenizer: Path) -> None:
    found = json.loads(tokenize("a", "--tokenizer", tokenizer, "--json").stdout)
    assert found == {"ids": [1, SPACE_A], "pieces": ["<s>", " a"], "format": "llama2.c"}


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["a"], [1, SPACE_A]),
        (["--no-bos", "a"], [SPACE_A]),
        (["--no-bos", ""], []),
        (["--special", "a</s>"], [1, SPACE_A, 2]),
        (["--", "-a"], [1, SPACE, ord("-") + 3, A]),
    ],
)
def test_options(tokenizer: Path, args: list[str], expected: list[int]) -> None:
    assert ids("--tokenizer", tokenizer, *args) == expected


def test_name_of_a_special_token_is_text(tokenizer: Path) -> None:
    assert 2 not in ids("--tokenizer", tokenizer, "a</s>")


@pytest.mark.parametrize("text", ["a", "é▁ab\n", "a\r\nb\n"])
def test_standard_input_is_taken_as_it_is(tokenizer: Path, text: str) -> None:
    piped = ids("--tokenizer", tokenizer, "-", stdin=text.encode())
    assert piped == ids("--tokenizer", tokenizer, text)


def test_bytes_that_are_no_text(tokenizer: Path) -> None:
    replaced = ids("--tokenizer", tokenizer, "-", stdin=b"a\xffb")
    assert replaced == ids("--tokenizer", tokenizer, "a\udcffb")
    assert replaced == ids("--tokenizer", tokenizer, "a\ufffdb")


def test_closed_standard_input(tokenizer: Path) -> None:
    command = [sys.executable, "-m", "llama2gpu", "tokenize", "-", "--tokenizer", str(tokenizer)]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *command], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "standard input is closed" in done.stderr


def test_tokenizer_of_a_model(tokenizer: Path, model: Path) -> None:
    assert ids("--model", model, "ab") == ids("--tokenizer", tokenizer, "ab")
    assert ids("--model", model, "--tokenizer", tokenizer, "a") == [1, SPACE_A]


def test_tokenizer_must_fit_the_model(tokenizer: Path, model: Path) -> None:
    tokenizer.write_bytes(tokenizer.read_bytes() + struct.pack("<fI", 1.0, 1) + b"c")
    result = tokenize("a", "--model", model, "--tokenizer", tokenizer)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("llama2gpu: error: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("option", ["--model", "--tokenizer"])
def test_missing_file_is_one_line(tmp_path: Path, option: str) -> None:
    result = tokenize("a", option, tmp_path / "none")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("llama2gpu: error: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("args", [["a"], ["a", "--tokenizer", "t", "--ids", "--json"], []])
def test_wrong_usage(args: list[str]) -> None:
    assert tokenize(*args).exit_code == 2


def test_published_tokenizer(stories: Path) -> None:
    expected = [1, 403, 407, 261, 378]
    assert ids("--tokenizer", stories / "tok512.bin", "Once upon a time") == expected
    assert ids("--model", stories / "stories260K.bin", "Once upon a time") == expected

"""Everything that a user can get wrong: one clear line, status 1, nothing written or lost."""

import errno
import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from llama2gpu.cli.main import program
from llama2gpu.errors import RequestError
from llama2gpu.training import files
from llama2gpu.training.loop import Trainer
from tests.training.conftest import Train


def run_train(text: Path, out: Path, options: str) -> Result:
    return CliRunner().invoke(program, ["train", str(text), "-o", str(out), *options.split()])


def refused(result: Result, *parts: str) -> None:
    lines = result.stderr.splitlines()
    assert result.exit_code == 1, result.output
    assert lines[-1].startswith("llama2gpu: error: ")
    assert "Traceback" not in result.output
    for part in parts:
        assert part in lines[-1]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"PK\x03\x04\0\0\0 not text", "NUL bytes"),
        ("wörter".encode("latin-1"), "not UTF-8 (byte 1)"),
        (b"<|endoftext|>\n<|endoftext|>\n", "no text"),
        (b"A short text.", "give more text"),
    ],
)
def test_bad_text(train: Train, tmp_path: Path, data: bytes, told: str) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(data)
    refused(train(source=path), told)
    assert {p.name for p in tmp_path.iterdir()} == {"bad.txt", "text.txt"}


def test_missing_text_and_folder(train: Train, tmp_path: Path) -> None:
    refused(train(source=tmp_path / "none.txt"), "none.txt", "No such file")
    refused(train(source=tmp_path), "Is a directory")


def test_smaller_than_a_window(train: Train, tmp_path: Path) -> None:
    refused(train("--context 4096"), "a context of 4096 needs at least 8194", "--context")
    assert not (tmp_path / "out.training").exists()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("--dim 30", "--dim 30 does not divide into 4 heads"),
        ("--dim 36", "of an even size"),
        ("--kv-heads 3", "4 heads can't share 3"),
        ("--tokenizer nowhere.model", "nowhere.model"),
        ("--device tpu", "unknown device"),
        ("--lr 1e30", "lower --lr"),
        ("--vocab 262", "give --vocab"),
    ],
)
def test_bad_option(train: Train, more: str, told: str) -> None:
    refused(train(more), told)


@pytest.mark.parametrize("more", ["--lr nan", "--lr inf", "--held-out nan"])
def test_not_a_number(train: Train, more: str) -> None:
    result = train(more)
    assert result.exit_code == 2
    assert "is not a finite number" in result.stderr


def test_held_out_loss_is_a_number(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "step", lambda self, step: ruin(self))
    refused(train("--steps 1"), "held-out loss is nan", "lower --lr")
    assert not (tmp_path / "out").exists()


def ruin(trainer: Trainer) -> float:
    with torch.no_grad():
        trainer.net.norm.fill_(math.nan)
    return 1.0


def test_reserved_character(train: Train, tmp_path: Path) -> None:
    path = tmp_path / "bars.txt"
    path.write_text("one ▅ more line\n" * 100)
    refused(train(source=path), "U+2585", "--tokenizer")


def test_small_vocabulary_is_told(train: Train, tmp_path: Path) -> None:
    result = train("--vocab 4000")
    assert result.exit_code == 0, result.output
    assert "tokens, not 4000" in result.stderr.splitlines()[0]


def test_shape_of_a_checkpoint_is_its_own(text: Path, tmp_path: Path) -> None:
    result = run_train(text, tmp_path / "out", f"--init-from {tmp_path} --dim 64")
    assert result.exit_code == 2
    assert "--init-from has its own --dim" in result.stderr


def test_output_is_kept(train: Train, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train()
    before = (out / "model.safetensors").read_bytes()
    refused(train("--seed 5"), "--overwrite")
    assert (out / "model.safetensors").read_bytes() == before
    assert train("--seed 5 --overwrite").exit_code == 0
    assert (out / "model.safetensors").read_bytes() != before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "text.txt"]


def test_overwrite_spares_what_others_wrote(train: Train, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    refused(train("--overwrite"), "was not written by this command")
    assert (out / "thesis.tex").read_text() == "years of work"
    (out / "thesis.tex").unlink()
    assert train().exit_code == 0


class Full(io.BytesIO):
    """A file on a full disk."""

    def write(self, data: Any) -> int:
        super().write(data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")


def test_no_space_left(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open

    def full(self: Path, *args: Any, **extra: Any) -> Any:
        return Full() if self.name == "model.safetensors.part" else real(self, *args, **extra)

    monkeypatch.setattr(Path, "open", full)
    refused(train(), "model.safetensors", "No space left", "make room")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    assert train("--resume").exit_code == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    files.write_whole(path, b"old")
    monkeypatch.setattr("os.fsync", lambda number: Full().write(b"x"))
    with pytest.raises(RequestError, match="No space left"):
        files.write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]

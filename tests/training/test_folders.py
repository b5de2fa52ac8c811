"""The folders of a training: what is replaced, what is spared, and what others hold."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llama2gpu.training import files
from tests.training.conftest import Train
from tests.training.test_bad_input import refused


def test_backups_are_kept(train: Train, tmp_path: Path) -> None:
    train()
    shutil.copytree(tmp_path / "out", tmp_path / "out.old")
    assert train("--overwrite").exit_code == 0
    assert (tmp_path / "out.old" / "model.safetensors").is_file()
    shutil.copytree(tmp_path / "out", tmp_path / "new.training.old")
    refused(train(out=tmp_path / "new"), "new.training.old exists", "--overwrite")


def test_resuming_spares_what_others_wrote(train: Train, tmp_path: Path) -> None:
    work = tmp_path / "out.training"
    work.mkdir()
    (work / "f").write_text("precious")
    for option in ("--resume", "--overwrite"):
        refused(train(option), "out.training", "give another folder")
    assert (work / "f").read_text() == "precious"


@pytest.mark.parametrize("name", ["", "training.json.part"])
def test_killed_at_once(train: Train, tmp_path: Path, name: str) -> None:
    work = tmp_path / "out.training"
    work.mkdir()
    if name:
        (work / name).write_bytes(b"{")
    assert train("--resume").exit_code == 0


def test_killed_while_it_removed(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train()
    real = Path.unlink

    def killed(self: Path, missing_ok: bool = False) -> None:
        if self.name == "training.json":
            raise KeyboardInterrupt
        real(self, missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", killed)
        train("--overwrite")
    left = tmp_path / "out.training.old"
    assert [path.name for path in left.iterdir()] == ["training.json"]
    assert train("--overwrite").exit_code == 0
    assert not left.exists()


def test_current_folder(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "out" / "inner"
    inner.mkdir(parents=True)
    for folder in (inner, inner.parent):
        monkeypatch.chdir(folder)
        refused(train(), "holds the current folder")
        assert folder.is_dir()


def test_places_that_hold_no_folder(
    train: Train, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(train(out=text / "x"), "text.txt is no folder")
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda path, mode: path != tmp_path)
        refused(train(), f"can't write in {tmp_path}")
    monkeypatch.setattr("os.path.ismount", lambda path: True)
    refused(train(), "can't be replaced", "give a folder in it")


def test_moving_fails(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(self: Path, target: Path) -> Path:
        raise OSError(errno.EBUSY, "Device or resource busy")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", busy)
        refused(train(), "Device or resource busy", "--resume")
    assert train("--resume").exit_code == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="no flock")
def test_one_run_at_a_time(train: Train, tmp_path: Path) -> None:
    work = tmp_path / "out.training"
    code = "import sys, pathlib; from llama2gpu.training import files\n"
    code += (
        "with files.working(pathlib.Path(sys.argv[1]), fresh=True): print(1, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, work], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout
        other.stdout.readline()
        for option in ("--resume", "--overwrite"):
            refused(train(option), "out.training is in use by another run")
        other.communicate(b"\n")
    assert train("--resume").exit_code == 0


def test_another_run_got_there_first(train: Train, tmp_path: Path) -> None:
    with files.working(tmp_path / "work", fresh=True), pytest.raises(Exception, match="in use"):
        files.working(tmp_path / "work", fresh=True).__enter__()

"""A written folder appears whole or not at all, and never over what others wrote."""

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from llama2gpu.checkpoints import huggingface_write, open_checkpoint
from llama2gpu.checkpoints.huggingface_write import write_huggingface as write
from llama2gpu.errors import RequestError
from tests.checkpoints.gptq import CONFIG
from tests.checkpoints.test_huggingface_write import DENSE, add_all, quantized, save, stored_in


@pytest.mark.parametrize("twice", [False, True])
def test_each_tensor_once(tmp_path: Path, twice: bool) -> None:
    with (
        pytest.raises(RequestError, match="came twice" if twice else "would lack layers"),
        write(tmp_path / "out", CONFIG, torch.float16) as folder,
    ):
        add_all(folder, ["embed"] * (1 + twice))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), None])
def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError | None) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise error or SafetensorError("Error: I/O error: No space left on device (os error 28)")

    save(tmp_path / "out", DENSE)
    before = stored_in(tmp_path / "out")
    monkeypatch.setattr(huggingface_write, "save_file", full)
    with pytest.raises(
        RequestError, match=r"can't write .*out.*No space left.*make room"
    ) as raised:
        save(tmp_path / "out", quantized(4, 32), overwrite=True)
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert stored_in(tmp_path / "out").keys() == before.keys()


def test_interrupted(tmp_path: Path) -> None:
    def names() -> Iterator[str]:
        yield "embed"
        raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        write(tmp_path / "out", CONFIG, torch.float16) as folder,
    ):
        add_all(folder, names())
    assert not list(tmp_path.iterdir())


def test_rename_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "out", DENSE)
    real = Path.rename

    def busy(self: Path, target: Path) -> Path:
        if target.name == "out" and self.suffix != ".old":
            raise OSError(errno.EBUSY, "Device or resource busy")
        return real(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", busy)
        with pytest.raises(RequestError, match="Device or resource busy"):
            save(tmp_path / "out", quantized(4, 32), overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert open_checkpoint(tmp_path / "out").quantization is None


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("step", ["aside", "new"])
def test_interrupted_between_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, late: bool
) -> None:
    """Before or after either rename, there is a whole folder in its place, and it alone."""
    save(tmp_path / "out", DENSE)
    real = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        renamed = "aside" if target.suffix == ".old" else "new" if target.name == "out" else ""
        now = renamed == step and self.suffix != ".old"
        if now and not late:
            raise KeyboardInterrupt
        found = real(self, target)
        if now:
            raise KeyboardInterrupt
        return found

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path / "out", quantized(4, 32), overwrite=True)
    assert (tmp_path / "out").is_dir()
    new = step == "new" and late
    assert (open_checkpoint(tmp_path / "out").quantization is not None) == new
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    save(out, DENSE)
    with pytest.raises(RequestError, match="exists: give another folder, or --overwrite"):
        save(out, DENSE)
    assert save(out, quantized(4, 32), overwrite=True).quantization == "GPTQ int4, group 32"
    (out / "notes.txt").write_text("precious")
    with pytest.raises(RequestError, match="did not write, so --overwrite does not touch"):
        save(out, DENSE, overwrite=True)
    (out / "notes.txt").unlink()
    fields = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(fields | {"written_by": "transformers"}))
    with pytest.raises(RequestError, match="did not write"):
        save(out, DENSE, overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(RequestError, match="is no folder"):
        save(tmp_path / "file", DENSE, overwrite=True)
    with pytest.raises(RequestError, match=r"can't write .*; write elsewhere"):
        save(tmp_path / "file" / "out", DENSE)


@contextmanager
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patched:
        patched.chdir(folder)
        yield


def test_the_input_is_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save(tmp_path / "in", DENSE)
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for out in (tmp_path / "in", tmp_path, tmp_path / "x" / ".." / "in", tmp_path / "link"):
        with (
            pytest.raises(RequestError, match="holds the model that is read"),
            write(out, CONFIG, torch.float16, source=source, overwrite=True),
        ):
            pass
    with inside(tmp_path / "in", monkeypatch), pytest.raises(RequestError, match="current folder"):
        save(tmp_path / "in", DENSE, overwrite=True)
    assert torch.equal(open_checkpoint(tmp_path / "in").read("embed"), DENSE["embed"])

"""Hostile files are refused in one line, run nothing, and take no memory worth the name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llama2gpu.checkpoints import open_checkpoint
from llama2gpu.errors import CheckpointError, UnsupportedModelError
from tests.checkpoints.hostile import TOUCHED, make
from tests.checkpoints.writers import CONFIG, random_tensors, write_huggingface, write_llama2c

OPEN_ALL = """
import json, sys, time
from pathlib import Path
import torch
from llama2gpu.checkpoints import open_checkpoint
from llama2gpu.errors import CheckpointError

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

warm, *paths = json.loads(sys.stdin.read())
open_checkpoint(warm)
for path in paths:
    Path("/proc/self/clear_refs").write_text("5")
    before, begun = memory("VmRSS"), time.monotonic()
    try:
        open_checkpoint(path)
        message = None
    except CheckpointError as error:
        message = str(error)
    seconds = time.monotonic() - begun
    print(json.dumps([message, memory("VmHWM") - before, seconds]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads its peak from Linux's /proc")
def test_refused_in_one_line_and_little_memory(tmp_path: Path) -> None:
    root = tmp_path / "hostile"
    root.mkdir()
    paths = make(root)
    warm = write_huggingface(tmp_path / "warm", CONFIG, random_tensors(CONFIG), safe=False)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", OPEN_ALL],
        input=json.dumps([str(path) for path in (warm, *paths)]),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(paths)
    for path, (message, growth, seconds) in zip(paths, results, strict=True):
        assert message is not None, f"{path.name} opened"
        assert "\n" not in message
        assert len(message) < 600, path.name
        assert growth < 150_000, f"{path.name}: {growth} KiB"
        assert seconds < 20, path.name
    assert not (root / TOUCHED).exists()


def refuse(path: Path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as error:
        open_checkpoint(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["m.bin", "hf/config.json", "hf/model.safetensors"])
def test_pipes_are_not_waited_on(tmp_path: Path, name: str) -> None:
    write_huggingface(tmp_path / "hf", CONFIG, random_tensors(CONFIG))
    path = tmp_path / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    refuse(path if name == "m.bin" else path.parent, "is not a regular file")


def test_devices() -> None:
    refuse(Path("/dev/zero"), "is not a regular file")


@pytest.mark.parametrize("name", ["m.bin", "hf", "hf/config.json", "hf/model.safetensors"])
def test_links_in_a_loop(tmp_path: Path, name: str) -> None:
    if name.startswith("hf/"):
        write_huggingface(tmp_path / "hf", CONFIG, random_tensors(CONFIG))
    path = tmp_path / name
    path.unlink(missing_ok=True)
    path.symlink_to(path)
    refuse(path.parent if name.startswith("hf/") else path, "can't be reached")


def test_folder_in_place_of_weights(tmp_path: Path) -> None:
    write_huggingface(tmp_path, CONFIG, random_tensors(CONFIG))
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").mkdir()
    refuse(tmp_path, "is not a regular file")


@pytest.mark.parametrize("name", ["m.bin", "hf/config.json", "hf/model.safetensors"])
def test_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write_huggingface(tmp_path / "hf", CONFIG, random_tensors(CONFIG))
    write_llama2c(tmp_path / "m.bin", CONFIG, random_tensors(CONFIG))
    locked, open_ = tmp_path / name, Path.open

    def deny(path: Path, *arguments: object) -> object:
        if path == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return open_(path, *arguments)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", deny)
    refuse(locked if name == "m.bin" else locked.parent, "Permission denied")


def test_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", deny)
    refuse(tmp_path, "can't be listed: Permission denied")


@pytest.mark.parametrize("name", ["a\0b", "a" * 5000, "a\nb"])
def test_strange_names(name: str) -> None:
    refuse(Path(name), ".")


def test_line_break_in_a_file_name(tmp_path: Path) -> None:
    path = tmp_path / "a\nb.bin"
    path.write_bytes(b"x" * 100)
    refuse(path, "a b.bin")


def test_names_of_tensors_are_cut_and_escaped(tmp_path: Path) -> None:
    tensors = {"\x1b[31m" + "x" * 300_000: torch.zeros(1)}
    write_huggingface(tmp_path, CONFIG, random_tensors(CONFIG))
    whole = load_file(tmp_path / "model.safetensors")
    save_file(whole | tensors, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match=r"adapters merged$") as error:
        open_checkpoint(tmp_path)
    message = str(error.value)
    assert "holds the tensor \\x1b[31mxxx" in message
    assert message.isprintable()
    assert len(message) == 1000


def test_empty_folder(tmp_path: Path) -> None:
    refuse(tmp_path, "holds neither config.json")
    (tmp_path / "params.json").write_text('{"dim": 32, "n_layers": 1, "n_heads": 4}')
    refuse(tmp_path, r"lacks consolidated\.00\.pth")


def test_one_file_of_a_folder(tmp_path: Path) -> None:
    write_huggingface(tmp_path, CONFIG, random_tensors(CONFIG))
    for name in ("config.json", "model.safetensors"):
        refuse(tmp_path / name, "give its folder")


def test_stories260k() -> None:
    models = os.environ.get("LLAMA2GPU_TEST_MODELS")
    path = Path(models or "absent") / "stories260K" / "stories260K.bin"
    if not path.exists():
        pytest.skip("LLAMA2GPU_TEST_MODELS holds no stories260K/stories260K.bin")
    checkpoint = open_checkpoint(path)
    config = checkpoint.config
    sizes = (config.dim, config.hidden, config.layers, config.heads, config.kv_heads)
    assert sizes == (64, 172, 5, 8, 4)
    assert (config.vocab, config.context, config.tied) == (512, 512, True)
    assert [file.name for file in checkpoint.tokenizer_files] == ["tok512.bin"]
    assert 0.0 < float(checkpoint.read("norm").mean()) < 10.0
    assert bool(checkpoint.read("layers.4.w2").isfinite().all())

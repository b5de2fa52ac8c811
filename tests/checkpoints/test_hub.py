"""Names on the Hub: what is fetched, and one line for all that can go wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from llama2gpu.checkpoints import open_checkpoint
from llama2gpu.errors import CheckpointError
from tests.checkpoints.writers import CONFIG, random_tensors, write_huggingface, write_meta


def _fake(monkeypatch: pytest.MonkeyPatch, answer: Callable[..., Any]) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)


@pytest.mark.parametrize("kind", ["safetensors", "bin", "meta"])
def test_fetches_safetensors_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    asked: list[list[str]] = []

    def download(name: str, allow_patterns: list[str]) -> str:
        assert name == "org/name"
        asked.append(allow_patterns)
        tensors = random_tensors(CONFIG)
        if len(asked) == 1 and kind != "safetensors":
            return str(tmp_path)
        if kind == "meta":
            write_meta(tmp_path, CONFIG, tensors)
        else:
            write_huggingface(tmp_path, CONFIG, tensors, safe=kind == "safetensors")
        return str(tmp_path)

    _fake(monkeypatch, download)
    assert open_checkpoint("org/name").config.dim == CONFIG.dim
    assert len(asked) == (1 if kind == "safetensors" else 2)
    assert not any("bin" in pattern for pattern in asked[0])
    assert not any("safetensors" in pattern for pattern in asked[-1] if len(asked) == 2)


def _of(kind: type[Exception]) -> Exception:
    error = kind.__new__(kind)
    error.args = ("first line\nsecond line",)
    return error


ERRORS = {
    "is gated": _of(GatedRepoError),
    "no such model on the Hub": _of(RepositoryNotFoundError),
    "check the network": _of(LocalEntryNotFoundError),
    "can't give it": OSError("disk\nfull"),
}


@pytest.mark.parametrize(("match", "error"), ERRORS.items(), ids=ERRORS)
def test_errors_are_one_line(monkeypatch: pytest.MonkeyPatch, match: str, error: Exception) -> None:
    def download(name: str, allow_patterns: list[str]) -> str:
        raise error

    _fake(monkeypatch, download)
    with pytest.raises(CheckpointError, match=match) as caught:
        open_checkpoint("org/name")
    assert "\n" not in str(caught.value)


def test_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="no file or folder org/name") as caught:
        open_checkpoint("org/name")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source", ["nothing", "./org/name", "a/b/c", "/a/b", "org/", "../x", "a b/c"]
)
def test_not_a_hub_name(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    _fake(monkeypatch, lambda *_, **__: pytest.fail("asked the Hub"))
    with pytest.raises(CheckpointError, match=r"no such file or folder: .*; give a path"):
        open_checkpoint(source)


def test_a_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_huggingface(tmp_path / "org" / "name", CONFIG, random_tensors(CONFIG))
    monkeypatch.chdir(tmp_path)
    _fake(monkeypatch, lambda *_, **__: pytest.fail("asked the Hub"))
    assert open_checkpoint("org/name").config == CONFIG

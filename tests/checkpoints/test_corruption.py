"""Truncated, extended and flipped files give a checkpoint or one line, and nothing else."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama2gpu.checkpoints import open_checkpoint
from llama2gpu.config import Config
from llama2gpu.errors import CheckpointError, RequestError, TokenizerError
from llama2gpu.tokenizer import tokenizer_of
from llama2gpu.tokenizer.huggingface_decoder import byte_letters
from tests.checkpoints.gguf_files import write_gguf
from tests.checkpoints.gptq import matrices_of, write_gptq
from tests.checkpoints.writers import random_tensors, write_huggingface, write_llama2c, write_meta

CONFIG = Config(
    dim=8, hidden=12, layers=1, heads=2, kv_heads=1, head_dim=4, vocab=10, context=8, tied=False
)
TENSORS = random_tensors(CONFIG)
BLOCKS = Config(
    dim=32, hidden=32, layers=1, heads=2, kv_heads=1, head_dim=16, vocab=268, context=8, tied=True
)
#: A tiny byte-level tokenizer.
WORDS: dict[str, Any] = {
    "tokenizer__ggml__model": "gpt2",
    "tokenizer__ggml__pre": "llama-bpe",
    "tokenizer__ggml__tokens": [*byte_letters(), "ab", "abc", "<a>"],
    "tokenizer__ggml__token_type": [*[1] * 258, 3],
    "tokenizer__ggml__merges": ["a b", "ab c"],
    "tokenizer__ggml__bos_token_id": 4,
}
LLAMA2C = [("v0", "m.bin"), ("v1", "m.bin"), ("v2", "m.bin")]
SIZED = [*LLAMA2C, ("safetensors", "model.safetensors"), ("gptq", "model.safetensors")]
FILES = [
    *SIZED,
    ("safetensors", "config.json"),
    ("gptq", "config.json"),
    ("shards", "model.safetensors.index.json"),
    ("shards", "model-00002-of-00002.safetensors"),
    ("bin", "pytorch_model.bin"),
    ("meta", "consolidated.00.pth"),
    ("meta2", "consolidated.01.pth"),
    ("meta", "params.json"),
    ("gguf", "m.bin"),
    ("gguf4", "m.bin"),
]
SETTINGS = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One sound checkpoint a format."""
    root = tmp_path_factory.mktemp("sound")
    for version in (0, 1, 2):
        folder = root / f"v{version}"
        folder.mkdir()
        write_llama2c(folder / "m.bin", CONFIG, TENSORS, version=version)
    write_meta(root / "meta", CONFIG, TENSORS)
    write_meta(root / "meta2", CONFIG, TENSORS, shards=2)
    write_huggingface(root / "safetensors", CONFIG, TENSORS)
    write_huggingface(root / "shards", CONFIG, TENSORS, shards=2)
    write_huggingface(root / "bin", CONFIG, TENSORS, safe=False)
    write_gptq(root / "gptq", matrices_of(zeros=True))
    for name in ("gguf", "gguf4"):
        (root / name).mkdir()
    write_gguf(root / "gguf" / "m.bin", CONFIG, TENSORS)
    blocks = random_tensors(BLOCKS)
    write_gguf(root / "gguf4" / "m.bin", BLOCKS, blocks, Kind.Q4_0, **WORDS)
    return root


def opens(folder: Path) -> bool:
    """Whether the damaged checkpoint opens and reads whole; raises for any other outcome."""
    file = folder / "m.bin"
    message = None
    try:
        checkpoint = open_checkpoint(file if file.exists() else folder)
        for info in checkpoint.tensors():
            tensor = checkpoint.read(info.name)
            assert tuple(tensor.shape) == info.shape
            tensor.to(torch.float32).sum()
        if checkpoint.embedded_tokenizer() is not None:
            tokenizer = tokenizer_of(checkpoint)
            tokenizer.decode(tokenizer.encode("abc c<a>"))
    except (CheckpointError, TokenizerError, RequestError) as error:
        message = str(error)
    assert message is None or ("\n" not in message and 20 < len(message) < 600)
    return message is None


def damaged(sound: Path, folder: str, name: str, damage: Callable[[bytes], bytes]) -> Path:
    copy = sound.parent / "damaged" / folder
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(sound / folder, copy)
    (copy / name).write_bytes(damage((copy / name).read_bytes()))
    return copy


def test_sound_ones_open(sound: Path) -> None:
    assert all(opens(folder) for folder in sound.iterdir())


@pytest.mark.parametrize(("folder", "name"), FILES)
@SETTINGS
@given(part=st.floats(0, 1, exclude_max=True))
def test_truncated(sound: Path, folder: str, name: str, part: float) -> None:
    assert not opens(damaged(sound, folder, name, lambda data: data[: int(len(data) * part)]))


@pytest.mark.parametrize(("folder", "name"), SIZED)
@SETTINGS
@given(tail=st.binary(min_size=1, max_size=64))
def test_extended(sound: Path, folder: str, name: str, tail: bytes) -> None:
    assert not opens(damaged(sound, folder, name, lambda data: data + tail))


@pytest.mark.parametrize(("folder", "name"), FILES)
@SETTINGS
@given(
    flips=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 7)), min_size=1, max_size=4),
    whole=st.booleans(),
)
def test_flipped(
    sound: Path, folder: str, name: str, flips: list[tuple[int, int]], whole: bool
) -> None:
    def flip(data: bytes) -> bytes:
        bytes_ = bytearray(data)
        span = len(bytes_) if whole else min(len(bytes_), 1200)
        for place, bit in flips:
            bytes_[place % span] ^= 1 << bit
        return bytes(bytes_)

    opens(damaged(sound, folder, name, flip))


@pytest.mark.parametrize(
    ("folder", "spare"), [("v0", [(28, 41)]), ("v1", [(32, 36), (37, 41)]), ("v2", [(32, 36)])]
)
def test_every_flip_of_a_llama2c_header(
    sound: Path, folder: str, spare: list[tuple[int, int]]
) -> None:
    """None opens but those of the context of v1 and v2, and of bytes that are no header."""
    for place in range(41):
        for bit in range(8):

            def flip(data: bytes, place: int = place, bit: int = bit) -> bytes:
                return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]

            if opens(damaged(sound, folder, "m.bin", flip)):
                assert any(low <= place < high for low, high in spare), (place, bit)

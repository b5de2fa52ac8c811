"""Truncated, extended and flipped files give a checkpoint or one line, and nothing else."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
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
from tests.checkpoints.awq import write_awq
from tests.checkpoints.gguf_files import write_gguf
from tests.checkpoints.gptq import matrices_of, write_gptq
from tests.checkpoints.single_files import (
    byte_vocabulary,
    spelled_bytes,
    write_ggjt,
    write_lmw,
    write_simple_llama,
)
from tests.checkpoints.writers import random_tensors, write_huggingface, write_llama2c, write_meta
from tests.tokenizer.conftest import pack_llama2c

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
#: ggjt and simple-llama group no heads; ggjt computes the width, and has the 256 bytes as tokens.
PLAIN = replace(CONFIG, hidden=24, kv_heads=2, vocab=264)
#: The sound files of one model each, by folder.
SINGLE: dict[str, Callable[[Path], Path]] = {
    **{
        f"v{version}": partial(write_llama2c, config=CONFIG, tensors=TENSORS, version=version)
        for version in (0, 1, 2)
    },
    "ggjt": partial(
        write_ggjt, config=PLAIN, tensors=random_tensors(PLAIN), vocabulary=byte_vocabulary(264)
    ),
    **{
        f"lmw{layout}": partial(write_lmw, config=CONFIG, tensors=TENSORS, layout=layout)
        for layout in "AB"
    },
    "lmwC": partial(
        write_lmw,
        config=PLAIN,
        tensors=random_tensors(PLAIN, torch.bfloat16),
        layout="C",
        tokenizer=pack_llama2c(spelled_bytes(byte_vocabulary(264))),
    ),
    **{
        f"simple{bits}": partial(
            write_simple_llama, config=PLAIN, tensors=random_tensors(PLAIN), bits=bits, group=8
        )
        for bits in (32, 8, 4)
    },
}
SIZED = [
    *((folder, "m.bin") for folder in SINGLE),
    *((folder, "model.safetensors") for folder in ("safetensors", "gptq", "awq")),
]
FILES = [
    *SIZED,
    ("safetensors", "config.json"),
    ("gptq", "config.json"),
    ("awq", "config.json"),
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
    for name, write in SINGLE.items():
        (root / name).mkdir()
        write(root / name / "m.bin")
    write_meta(root / "meta", CONFIG, TENSORS)
    write_meta(root / "meta2", CONFIG, TENSORS, shards=2)
    write_huggingface(root / "safetensors", CONFIG, TENSORS)
    write_huggingface(root / "shards", CONFIG, TENSORS, shards=2)
    write_huggingface(root / "bin", CONFIG, TENSORS, safe=False)
    write_gptq(root / "gptq", matrices_of(zeros=True))
    write_awq(root / "awq", matrices_of(zeros=True))
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
            if len(info.shape) == 2:
                assert checkpoint.weight(info.name).shape == info.shape
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
    ("folder", "spare"),
    [
        ("v0", [(28, 41)]),
        ("v1", [(32, 36), (37, 41)]),
        ("v2", [(32, 36)]),
        ("ggjt", [(16, 20), (32, 36), (40, 41)]),
        ("lmwA", [(24, 28), (32, 40)]),
        ("lmwB", [(24, 28), (32, 41)]),
        ("lmwC", [(12, 28)]),
        ("simple32", [(28, 41)]),
        ("simple8", [(28, 32), (40, 41)]),
        ("simple4", [(28, 32), (40, 41)]),
    ],
)
def test_every_flip_of_a_header(sound: Path, folder: str, spare: list[tuple[int, int]]) -> None:
    """None opens but those of the context, constants, names and of what is not read."""
    for place in range(41):
        for bit in range(8):

            def flip(data: bytes, place: int = place, bit: int = bit) -> bytes:
                return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]

            if opens(damaged(sound, folder, "m.bin", flip)):
                assert any(low <= place < high for low, high in spare), (place, bit)

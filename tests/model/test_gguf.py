"""GGUF files of a known model tell what it tells; their integers what the numpy backend tells."""

from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType as Kind

import llama2gpu
from llama2gpu.checkpoints import Checkpoint, open_checkpoint, tensor_shapes
from llama2gpu.checkpoints.open import SHIPPED
from llama2gpu.quant import Int4, Int8
from tests.checkpoints.gguf_files import llama2c_fields, spm_fields, write_gguf
from tests.model.test_golden import GREEDY
from tests.tokenizer.test_embedded import entries_of


def write(path: Path, source: Checkpoint, kind: Kind, fields: dict[str, Any]) -> Path:
    tensors = {name: source.read(name).float() for name, _ in tensor_shapes(source.config)}
    return write_gguf(path, source.config, tensors, kind, **fields)


@pytest.fixture
def published(stories: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """stories260K as llama.cpp would have it; no tokenizer lies beside it."""
    fields = llama2c_fields(entries_of((stories / "tok512.bin").read_bytes()))
    source = open_checkpoint(stories / "stories260K.bin")
    return write(tmp_path / "stories260K.gguf", source, request.param, fields)


@pytest.fixture(scope="module", params=[Kind.Q4_0, Kind.Q8_0], ids=lambda kind: kind.name)
def shipped(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """The model that comes with the package, quantized."""
    folder = SHIPPED["stories"]
    fields = spm_fields(folder / "tokenizer.model")
    path = tmp_path_factory.mktemp("gguf") / "stories.gguf"
    return write(path, open_checkpoint(folder), request.param, fields)


@pytest.mark.parametrize("published", [Kind.F32], indirect=True)
@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_golden(published: Path, backend: str) -> None:
    llama = llama2gpu.load(published, backend=backend, device="cpu")
    answer = llama.generate("", temperature=0, max_tokens=256)
    assert answer.text == GREEDY
    answer = llama.generate("Once upon a time", temperature=0, max_tokens=60)
    assert answer.text == GREEDY.removeprefix("Once upon a time")[: len(answer.text)]


@pytest.mark.parametrize("published", [Kind.F16, Kind.BF16], indirect=True)
def test_half_types_run_in_float32_too(published: Path) -> None:
    llama = llama2gpu.load(published, backend="torch", device="cpu", dtype="fp32")
    answer = llama.generate("", temperature=0, max_tokens=12)
    assert len(answer.tokens) == 12
    assert GREEDY.startswith(answer.text)


def test_the_same_tokens_on_every_backend(shipped: Path) -> None:
    checkpoint = open_checkpoint(shipped)
    assert isinstance(checkpoint.weight("layers.0.w1"), Int4 | Int8)
    found = [
        llama2gpu.load(shipped, backend=backend, device="cpu", dtype="fp32").generate(
            "The dog", temperature=0, max_tokens=40
        )
        for backend in ("numpy", "torch")
    ]
    assert found[0].tokens == found[1].tokens
    assert len(found[0].tokens) == 40


def test_integers_tell_what_their_floats_tell(shipped: Path, tmp_path: Path) -> None:
    """The same values, dequantized into another file, give the same tokens."""
    source = open_checkpoint(shipped)
    fields = spm_fields(SHIPPED["stories"] / "tokenizer.model")
    floats = write(tmp_path / "floats.gguf", source, Kind.F32, fields)
    texts = {
        llama2gpu.load(path, backend="numpy", device="cpu")
        .generate("Once upon a time", temperature=0, max_tokens=40)
        .text
        for path in (shipped, floats)
    }
    assert len(texts) == 1

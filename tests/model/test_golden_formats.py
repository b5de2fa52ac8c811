"""stories260K in every format of one file: lossless ones tell the golden text, others their own."""

import struct
from pathlib import Path

import pytest
import torch

import llama2gpu
from llama2gpu.checkpoints import open_checkpoint
from llama2gpu.config import Config
from llama2gpu.tokenizer import load_tokenizer, tokenizer_of
from tests.checkpoints.single_files import (
    Entries,
    flat_values,
    ungrouped,
    write_ggjt,
    write_lmw,
    write_simple_llama,
)
from tests.checkpoints.writers import Tensors, write_llama2c
from tests.model.test_golden import BACKENDS, GREEDY

LOSSLESS = ("ggjt", "lmw-A", "lmw-B", "lmw-C", "simple", "v1")
EMBEDDED = ("ggjt", "lmw-C")
LOSSY = ("v2", "int8", "int4")


def scored_texts(path: Path) -> Entries:
    """tok512.bin's tokens, as ggjt spells bytes and control tokens."""
    data, at, entries = path.read_bytes(), 4, []
    while at < len(data):
        score, length = struct.unpack_from("<fI", data, at)
        entries.append((score, data[at + 8 : at + 8 + length]))
        at += 8 + length
    special = [b" \xe2\x81\x87 ", b"", b"", *(bytes([byte]) for byte in range(256))]
    return [(score, special[n] if n < 259 else text) for n, (score, text) in enumerate(entries)]


def written(form: str, stories: Path, folder: Path) -> tuple[Path, Config, Tensors]:
    """The file in a format, its configuration and its tensors before they were rounded."""
    source = open_checkpoint(stories / "stories260K.bin")
    config, path = source.config, folder / "model.bin"
    grouped = {info.name: source.read(info.name) for info in source.tensors()}
    plain, tensors = ungrouped(config, grouped)
    untied = {**grouped, "output": grouped["embed"]}
    words = stories / "tok512.bin"
    if form == "ggjt":
        return write_ggjt(path, plain, tensors, scored_texts(words)), plain, tensors
    if form.startswith("lmw"):
        file = write_lmw(path, config, untied, form[-1], words.read_bytes())
        return file, config, untied
    if form in ("v1", "v2"):
        version = int(form[1])
        return (
            write_llama2c(path, config, grouped, version=version, group=64),
            config,
            grouped,
        )
    bits = {"simple": 32, "int8": 8, "int4": 4}[form]
    return write_simple_llama(path, plain, tensors, bits=bits), plain, tensors


def told(path: Path, stories: Path, backend: str) -> list[int]:
    """Tokens up to the one that begins another story, where llama2.c's files stop."""
    llama = llama2gpu.load(path, tokenizer=stories / "tok512.bin", backend=backend, device="cpu")
    tokens = llama.generate("", temperature=0, max_tokens=256).tokens
    return tokens[: tokens.index(1)] if 1 in tokens else tokens


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", LOSSLESS)
def test_golden_text(tmp_path: Path, stories: Path, form: str, backend: str) -> None:
    path, _, _ = written(form, stories, tmp_path)
    words = None if form in EMBEDDED else stories / "tok512.bin"
    llama = llama2gpu.load(path, tokenizer=words, backend=backend, device="cpu")
    assert llama.generate("", temperature=0, max_tokens=256).text == GREEDY


@pytest.mark.parametrize("form", LOSSY)
def test_tokens_of_the_reference(tmp_path: Path, stories: Path, form: str) -> None:
    """The numpy backend's tokens for these integers, and for the floats that they stand for."""
    path, config, tensors = written(form, stories, tmp_path)
    checkpoint = open_checkpoint(path)
    bits, group = (4 if form == "int4" else 8), (64 if form == "v2" else 128)
    assert checkpoint.quantization == f"int{bits}, group {group}"
    rounded = {
        name: flat_values(tensor, bits, group) if tensor.dim() == 2 else tensor
        for name, tensor in tensors.items()
    }
    for name, tensor in rounded.items():
        assert torch.allclose(checkpoint.read(name), tensor, rtol=0, atol=1e-6), name
    dense = write_llama2c(tmp_path / "dense.bin", config, rounded, version=1)
    wanted = told(path, stories, "numpy")
    assert len(wanted) > 200
    assert told(path, stories, "torch") == wanted
    assert told(dense, stories, "numpy") == wanted


@pytest.mark.parametrize("form", EMBEDDED)
def test_embedded_tokenizer(tmp_path: Path, stories: Path, form: str) -> None:
    """tok512.bin's tokens, from the vocabulary within the file."""
    found = tokenizer_of(open_checkpoint(written(form, stories, tmp_path)[0]))
    wanted = load_tokenizer(stories / "tok512.bin", vocab=512)
    for text in (GREEDY, "", " two  spaces ", "<s> é 漢 <0x41>\n\t"):
        assert found.encode(text) == wanted.encode(text)
        assert found.decode(found.encode(text)) == text

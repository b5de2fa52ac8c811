"""Formats of one file: every tensor bit for bit, integers where they can stay integers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llama2gpu.checkpoints import open_checkpoint, tensor_shapes
from llama2gpu.config import Config
from llama2gpu.errors import CheckpointError, TokenizerError, UnsupportedModelError
from llama2gpu.tokenizer import load_tokenizer, tokenizer_of
from llama2gpu.training.spm import train_tokenizer
from llama2gpu.vocabulary import PieceType, ScoredVocabulary, TokenizerFile
from tests.checkpoints.single_files import (
    byte_vocabulary,
    meta_names,
    write_ggjt,
    write_lmw,
    write_simple_llama,
)
from tests.checkpoints.writers import Tensors, random_tensors
from tests.training.conftest import make_text

#: The width is the one that ggjt computes for multiples of 32.
CONFIG = Config(
    dim=64,
    hidden=192,
    layers=2,
    heads=4,
    kv_heads=4,
    head_dim=16,
    vocab=320,
    context=64,
    tied=False,
)
GROUPED = replace(CONFIG, kv_heads=2, norm_eps=2.0**-17)  # float32 has it

Writer = Callable[[Path, Config, Tensors], Path]


def ggjt(path: Path, config: Config, tensors: Tensors, half: bool = False) -> Path:
    vocabulary = byte_vocabulary(config.vocab)
    return write_ggjt(path, config, tensors, vocabulary, multiple_of=32, half=half)


def half_ggjt(path: Path, config: Config, tensors: Tensors) -> Path:
    return ggjt(path, config, tensors, half=True)


def lmw(layout: str) -> Writer:
    return lambda path, config, tensors: write_lmw(path, config, tensors, layout, b"words" * 3)


FORMATS: dict[str, tuple[Writer, Config, torch.dtype]] = {
    "ggjt v1": (ggjt, CONFIG, torch.float32),
    "ggjt v1 ": (half_ggjt, CONFIG, torch.float16),
    "lmw A": (lmw("A"), GROUPED, torch.float32),
    "lmw B": (lmw("B"), GROUPED, torch.float32),
    "lmw C": (lmw("C"), GROUPED, torch.bfloat16),
    "lmw C ": (lmw("C"), GROUPED, torch.float32),
    "simple-llama v3": (write_simple_llama, CONFIG, torch.float32),
}


@pytest.mark.parametrize("name", FORMATS)
def test_round_trip(tmp_path: Path, name: str) -> None:
    write, config, dtype = FORMATS[name]
    tensors = random_tensors(config, dtype)
    checkpoint = open_checkpoint(write(tmp_path / "model.bin", config, tensors))
    assert checkpoint.format == name.strip()
    assert checkpoint.config == replace(config, context=2048 if "ggjt" in name else 64)
    assert checkpoint.dtype == dtype
    assert checkpoint.quantization is None
    assert [(t.name, t.shape) for t in checkpoint.tensors()] == list(tensor_shapes(config))
    for info in checkpoint.tensors():
        read = checkpoint.read(info.name)
        stored = torch.float32 if "ggjt" in name and len(info.shape) == 1 else dtype
        assert info.dtype == str(stored).removeprefix("torch.")
        assert read.dtype == stored
        assert info.nbytes == read.nbytes
        assert read.is_contiguous()
        assert torch.equal(read, tensors[info.name].to(stored)), info.name


def test_constants_of_lmw(tmp_path: Path) -> None:
    config = replace(GROUPED, rope_theta=5e5)
    tensors = random_tensors(config)
    for layout, theta in (("A", 1e4), ("B", 5e5), ("C", 5e5)):
        told = open_checkpoint(write_lmw(tmp_path / "m.lmw", config, tensors, layout)).config
        assert (told.rope_theta, told.norm_eps) == (theta, 2.0**-17)


def test_views_of_the_map(tmp_path: Path) -> None:
    for name, (write, config, dtype) in FORMATS.items():
        path = write(tmp_path / f"{name}.bin", config, random_tensors(config, dtype))
        checkpoint = open_checkpoint(path)
        address = checkpoint.read("embed").data_ptr()
        with Path("/proc/self/maps").open() as maps:
            spans = [line.split()[0] for line in maps if path.name in line]
        bounds = [[int(end, 16) for end in span.split("-")] for span in spans]
        assert any(low <= address < high for low, high in bounds), checkpoint.format


def test_embedded_vocabulary_of_ggjt(tmp_path: Path) -> None:
    vocabulary = byte_vocabulary(320)
    vocabulary[310] = (0.0, b"")
    path = tmp_path / "m.bin"
    write_ggjt(path, CONFIG, random_tensors(CONFIG), vocabulary, multiple_of=32)
    checkpoint = open_checkpoint(path)
    words = checkpoint.embedded_tokenizer()
    assert isinstance(words, ScoredVocabulary)
    assert len(words.pieces) == len(words.scores) == len(words.types) == 320
    assert list(words.pieces[:5]) == ["<unk>", "<s>", "</s>", "<0x00>", "<0x01>"]
    assert (words.pieces[258], words.pieces[259], words.pieces[286]) == ("<0xFF>", "▁", "▁a")
    kinds = [PieceType.UNKNOWN, PieceType.CONTROL, PieceType.CONTROL, *[PieceType.BYTE] * 256]
    kinds += [PieceType.NORMAL] * 61
    kinds[310] = PieceType.CONTROL
    assert list(words.types) == kinds
    assert (words.scores[260], words.scores[286]) == (-2.0, -100.0)
    tokenizer = tokenizer_of(checkpoint)
    assert (tokenizer.vocab, tokenizer.bos_id, tokenizer.eos_ids) == (320, 1, (2,))
    ids = tokenizer.encode("a b\n")
    assert ids == [1, 286, 287, 13]
    assert tokenizer.decode([*ids, 310]) == "a b\n"


@pytest.mark.parametrize(
    ("place", "text", "told"),
    [
        (70, b"A", "its tokens 3 to 258 are not the 256 bytes"),
        (300, b"\xff", "a token is no UTF-8"),
        (300, b"a", "1 of its tokens are there twice"),
        (300, b"<s>", "1 of its tokens are there twice"),
    ],
)
def test_vocabulary_of_another_kind(tmp_path: Path, place: int, text: bytes, told: str) -> None:
    vocabulary = byte_vocabulary(320)
    vocabulary[place] = (0.0, text)
    path = tmp_path / "m.bin"
    write_ggjt(path, CONFIG, random_tensors(CONFIG), vocabulary, multiple_of=32)
    with pytest.raises(TokenizerError, match=told) as error:
        open_checkpoint(path).embedded_tokenizer()
    assert "give one with --tokenizer PATH" in str(error.value)


@pytest.mark.parametrize("length", [0, 1, 3, 4, 1000])
def test_embedded_tokenizer_of_lmw(tmp_path: Path, length: int) -> None:
    tensors = random_tensors(GROUPED)
    data = bytes(n % 251 + 1 for n in range(length))
    path = write_lmw(tmp_path / "m.lmw", GROUPED, tensors, "C", data)
    checkpoint = open_checkpoint(path)
    assert torch.equal(checkpoint.read("layers.1.w1"), tensors["layers.1.w1"])
    assert checkpoint.embedded_tokenizer() == (TokenizerFile(data) if data else None)
    path = write_lmw(tmp_path / "m.lmw", GROUPED, tensors, "B")
    assert open_checkpoint(path).embedded_tokenizer() is None


def test_tokens_of_lmw(tmp_path: Path) -> None:
    """The embedded tokenizer is used, not one that lies beside."""
    (tmp_path / "tokenizer.bin").write_bytes(b"nothing")
    data = train_tokenizer([make_text()], 320)[0]
    (tmp_path / "words.model").write_bytes(data)
    path = write_lmw(tmp_path / "m.lmw", GROUPED, random_tensors(GROUPED), "C", data)
    found, wanted = tokenizer_of(open_checkpoint(path)), load_tokenizer(tmp_path / "words.model")
    text = "Once upon a time, there was a kite."
    assert found.encode(text) == wanted.encode(text)
    assert (found.vocab, found.eos_ids) == (wanted.vocab, wanted.eos_ids)


def test_neighbouring_tokenizers(tmp_path: Path) -> None:
    for name in ("tok320.bin", "tokenizer.model"):
        (tmp_path / name).touch()
    for name, (write, config, dtype) in FORMATS.items():
        checkpoint = open_checkpoint(write(tmp_path / "m", config, random_tensors(config, dtype)))
        files = [path.name for path in checkpoint.tokenizer_files]
        assert files == ["tok320.bin", "tokenizer.model"], name


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "ggjt 2": (
        lambda p: write_ggjt(p, CONFIG, random_tensors(CONFIG), [], header={1: 2}),
        "ggjt version 2, of which only 1 is supported: convert it to GGUF",
    ),
    "ggjt type": (
        lambda p: _patched(ggjt(p, CONFIG, random_tensors(CONFIG)), _first_record(320) + 8, 2),
        "output.weight is of ggml's type 2: give the model in float32",
    ),
    "simple 2": (
        lambda p: write_simple_llama(p, CONFIG, random_tensors(CONFIG), header={1: 2}),
        "simple-llama version 2: export it as 3",
    ),
    "simple bits": (
        lambda p: write_simple_llama(p, CONFIG, random_tensors(CONFIG), bits=8, header={9: 3}),
        "values of 3 bits: quantize it to 8 or 4",
    ),
    "lmw 2": (
        lambda p: _patched(write_lmw(p, CONFIG, random_tensors(CONFIG)), 4, 2),
        "lmw version 2, of which only 1 is known",
    ),
}


def _first_record(vocab: int) -> int:
    return 36 + sum(8 + len(text) for _, text in byte_vocabulary(vocab))


def _patched(path: Path, place: int, number: int) -> Path:
    data = bytearray(path.read_bytes())
    data[place : place + 4] = number.to_bytes(4, "little")
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    make, told = REFUSED[case]
    with pytest.raises(UnsupportedModelError, match=told):
        open_checkpoint(make(tmp_path / "m"))


@pytest.mark.parametrize("magic", [b"fmgg", b"lmgg"])
def test_older_magics(tmp_path: Path, magic: bytes) -> None:
    (tmp_path / "m.bin").write_bytes(magic + bytes(100))
    with pytest.raises(UnsupportedModelError, match=r"is a gg(mf|ml) file, .* as GGUF"):
        open_checkpoint(tmp_path / "m.bin")


@pytest.mark.parametrize("name", ["ggjt v1", "lmw A", "lmw C"])
def test_lists_of_tensors(tmp_path: Path, name: str) -> None:
    """A tensor that is missing, has another shape, or belongs to no Llama."""
    write, config, dtype = FORMATS[name]
    tensors = random_tensors(config, dtype)
    whole = write(tmp_path / "m", config, tensors).read_bytes()
    lacking = {n: t for n, t in tensors.items() if n != "output"}
    with pytest.raises(CheckpointError, match=r"lacks the tensor output\.weight"):
        open_checkpoint(write(tmp_path / "m", config, lacking))
    wrong = tensors | {"layers.1.wo": tensors["layers.1.wo"][:32]}
    with pytest.raises(CheckpointError, match=r"wo\.weight is \[32, 64\]"):
        open_checkpoint(write(tmp_path / "m", config, wrong))
    strange = {"layers.2.w1": tensors["layers.0.w1"]}
    with pytest.raises(UnsupportedModelError, match=r"holds the tensor layers\.2\."):
        open_checkpoint(write(tmp_path / "m", config, strange | tensors))
    (tmp_path / "m").write_bytes(whole)
    assert open_checkpoint(tmp_path / "m").config.layers == 2


def test_tensors_that_come_twice(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    twice = [*meta_names(tensors), ("norm.weight", tensors["norm"])]
    vocabulary = byte_vocabulary(320)
    write_ggjt(tmp_path / "ggjt", CONFIG, twice, vocabulary, multiple_of=32)
    write_lmw(tmp_path / "lmw", CONFIG, twice, "C")
    for name in ("ggjt", "lmw"):
        with pytest.raises(CheckpointError, match=r"holds norm\.weight twice: it is damaged"):
            open_checkpoint(tmp_path / name)


def test_more_tensors_than_a_llama_has(tmp_path: Path) -> None:
    many = [(f"t{n}", torch.ones(1)) for n in range(1000)]
    write_ggjt(tmp_path / "ggjt", CONFIG, many, byte_vocabulary(320), multiple_of=32)
    write_lmw(tmp_path / "lmw", CONFIG, many)
    for name in ("ggjt", "lmw"):
        with pytest.raises(CheckpointError, match=r"holds more than 28 tensors"):
            open_checkpoint(tmp_path / name)

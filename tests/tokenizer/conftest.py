"""Tiny tokenizers of every format, trained once on the same text."""

import json
import os
import random
import struct
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

from llama2gpu.tokenizer import Tokenizer, load_tokenizer
from llama2gpu.tokenizer.huggingface_decoder import byte_letters

WORDS = (
    "once upon a time there was little girl named Lily she loved to play outside in the "
    "park's big red café 12 345 naïve don't stop"
)
VOCAB = 400
FORMATS = ("sentencepiece", "llama2c", "hf_bytes", "hf_llama", "tiktoken")


@pytest.fixture(scope="session")
def lines() -> list[str]:
    rng = random.Random(0)
    return ["  ".join(rng.choices(WORDS.split(), k=3)) + " " + WORDS for _ in range(100)]


@pytest.fixture(scope="session")
def spm(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> Path:
    """A SentencePiece model with Llama 2's settings."""
    from sentencepiece import SentencePieceTrainer

    folder = tmp_path_factory.mktemp("spm")
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=VOCAB,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        character_coverage=1.0,
        minloglevel=2,
    )
    return folder / "tokenizer.model"


@pytest.fixture(scope="session")
def llama2c(tmp_path_factory: pytest.TempPathFactory, spm: Path) -> Path:
    """The same model as llama2.c's export writes it."""
    from sentencepiece import SentencePieceProcessor

    processor: Any = SentencePieceProcessor(model_file=str(spm))
    entries = []
    for id in range(processor.get_piece_size()):
        piece = {1: "\n<s>\n", 2: "\n</s>\n"}.get(id, processor.id_to_piece(id))
        entries.append((processor.get_score(id), piece.replace("▁", " ").encode()))
    path = tmp_path_factory.mktemp("llama2c") / "tokenizer.bin"
    path.write_bytes(pack_llama2c(entries))
    return path


def pack_llama2c(entries: list[tuple[float, bytes]]) -> bytes:
    """tokenizer.bin of scored tokens."""
    packed = [struct.pack("<fI", score, len(text)) + text for score, text in entries]
    return struct.pack("<I", max(len(text) for _, text in entries)) + b"".join(packed)


@pytest.fixture(scope="session")
def hf_bytes(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> Path:
    """A tokenizer.json of Llama 3's kind: byte-level, words kept whole, BOS by a template."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    library = Library(models.BPE(ignore_merges=True))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    library.train_from_iterator(
        lines,
        trainers.BpeTrainer(
            vocab_size=VOCAB,
            special_tokens=specials,
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    library.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
    )
    path = tmp_path_factory.mktemp("hf_bytes") / "tokenizer.json"
    library.save(str(path))
    return path


@pytest.fixture(scope="session")
def hf_llama(tmp_path_factory: pytest.TempPathFactory, spm: Path) -> Path:
    """A tokenizer.json of Llama 2's kind, with the vocabulary of `spm`."""
    from sentencepiece import SentencePieceProcessor
    from tokenizers import AddedToken, decoders, models, normalizers, processors
    from tokenizers import Tokenizer as Library

    processor: Any = SentencePieceProcessor(model_file=str(spm))
    ids = {processor.id_to_piece(id): id for id in range(processor.get_piece_size())}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in list(ids)[259:]
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    model = models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    library = Library(model)
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    library.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    library.add_special_tokens([AddedToken(name, normalized=False) for name in list(ids)[:3]])
    library.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    path = tmp_path_factory.mktemp("hf_llama") / "tokenizer.json"
    library.save(str(path))
    return path


@pytest.fixture(scope="session")
def tiktoken(tmp_path_factory: pytest.TempPathFactory, hf_bytes: Path) -> Path:
    """Ranks of Meta's kind, from the merges of `hf_bytes`."""
    letters = byte_letters()
    vocab = json.loads(hf_bytes.read_text())["model"]["vocab"]
    names = [name for name in sorted(vocab, key=vocab.__getitem__) if name[:2] != "<|"]
    path = tmp_path_factory.mktemp("tiktoken") / "tokenizer.model"
    tokens = [bytes(letters[letter] for letter in name) for name in names]
    path.write_text("".join(f"{b64encode(t).decode()} {n}\n" for n, t in enumerate(tokens)))
    return path


@pytest.fixture(scope="session", params=FORMATS)
def path(request: pytest.FixtureRequest) -> Path:
    """One tokenizer file of each format."""
    name = "spm" if request.param == "sentencepiece" else request.param
    found: Path = request.getfixturevalue(name)
    return found


@pytest.fixture(scope="session")
def tokenizer(path: Path) -> Tokenizer:
    return load_tokenizer(path)


@pytest.fixture(scope="session")
def tok512() -> Path:
    """The tokenizer of the published stories260K."""
    folder = os.environ.get("LLAMA2GPU_TEST_MODELS")
    if not folder:
        pytest.skip("LLAMA2GPU_TEST_MODELS is not set")
    path = Path(folder) / "stories260K" / "tok512.bin"
    if not path.exists():
        pytest.skip(f"no {path}")
    return path

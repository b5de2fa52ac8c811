"""A tokenizer written in another format gives the same tokens, or is refused in one line."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama2gpu.errors import TokenizerError
from llama2gpu.tokenizer import Tokenizer, embedded_file, load_tokenizer
from llama2gpu.tokenizer.export import vocabulary_of
from llama2gpu.tokenizer.export_parts import pairs_of
from llama2gpu.tokenizer.llama2c_write import tokenizer_bin
from llama2gpu.vocabulary import MergedVocabulary, PieceType, ScoredVocabulary

TEXTS = (
    "",
    "Once upon a time there was a little girl named Lily.",
    " two  spaces\n\n and\ttabs ",
    "naïve café, 12345 日本 🙂",
    "don't stop <0x41> <s> x",
    "e" * 70,
)


def written(tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    """The tokenizer once its data has become the file that other engines read."""
    name, data = embedded_file(vocabulary_of(tokenizer), tokenizer.path)
    (folder / name).write_bytes(data)
    (folder / "config.json").write_text(
        json.dumps({"bos_token_id": tokenizer.bos_id, "eos_token_id": list(tokenizer.eos_ids)})
    )
    return load_tokenizer(folder / name)


def test_files_for_other_engines(tokenizer: Tokenizer, tmp_path: Path) -> None:
    again = written(tokenizer, tmp_path)
    assert again.format in ("SentencePiece", "Hugging Face")
    assert (again.vocab, again.bos_id, again.eos_ids) == (
        tokenizer.vocab,
        tokenizer.bos_id,
        tokenizer.eos_ids,
    )
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert again.encode(text) == ids, text
        assert again.decode(ids) == tokenizer.decode(ids)


def test_long_pieces_are_not_cut_everywhere() -> None:
    """That would take hours for one of four million letters."""
    ranks = {"a": 0, "b": 1, "ab": 2, "aba": 3, "b" * (1 << 22): 4}
    assert [*pairs_of(ranks)] == [("a", "b"), ("ab", "a")]
    assert [*pairs_of({**ranks, "ba": 5})][1:] == [("a", "ba"), ("ab", "a"), ("b", "a")]


@pytest.mark.parametrize("kind", ["spm", "llama2c", "hf_llama"])
def test_tokenizer_bin(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(request.getfixturevalue(kind))
    rows = tokenizer.vocab + 7
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(tokenizer_bin(vocabulary_of(tokenizer), rows))
    again = load_tokenizer(path, vocab=rows)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert again.encode(text) == ids, text
        assert again.decode(ids) == tokenizer.decode(ids)


def test_tokenizer_bin_is_that_of_llama2c(spm: Path, llama2c: Path) -> None:
    tokenizer = load_tokenizer(spm)
    assert tokenizer_bin(vocabulary_of(tokenizer), tokenizer.vocab) == llama2c.read_bytes()


def test_published_tokenizer(tok512: Path) -> None:
    assert tokenizer_bin(vocabulary_of(load_tokenizer(tok512)), 512) == tok512.read_bytes()


@pytest.mark.parametrize("kind", ["hf_bytes", "tiktoken"])
def test_llama2c_has_no_byte_level_bpe(kind: str, request: pytest.FixtureRequest) -> None:
    found = vocabulary_of(load_tokenizer(request.getfixturevalue(kind)))
    assert isinstance(found, MergedVocabulary)
    with pytest.raises(TokenizerError, match="no byte-level BPE"):
        tokenizer_bin(found, 1000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bos_id": 5}, "token 1"),
        ({"eos_ids": (5,)}, "with 2"),
        ({"space_prefix": False}, "a space before"),
        ({"trims_spaces": True}, "keep all others"),
        ({"adds_bos": False}, "put BOS"),
        ({"types": [2, 3, 3, *[1] * 5000]}, "256 bytes"),
    ],
    ids=str,
)
def test_what_llama2c_reads_otherwise(spm: Path, change: dict[str, Any], message: str) -> None:
    found = vocabulary_of(load_tokenizer(spm))
    assert isinstance(found, ScoredVocabulary)
    with pytest.raises(TokenizerError, match=message):
        tokenizer_bin(replace(found, **change), 1000)


def test_pieces_that_llama2c_would_split(spm: Path) -> None:
    found = vocabulary_of(load_tokenizer(spm))
    assert isinstance(found, ScoredVocabulary)
    types = [*found.types[:-1], PieceType.USER_DEFINED]
    with pytest.raises(TokenizerError, match="stay whole"):
        tokenizer_bin(replace(found, types=types), 1000)
    with pytest.raises(TokenizerError, match="256 bytes"):
        tokenizer_bin(replace(found, pieces=["<unk>", *found.pieces]), 1000)


def test_control_pieces_do_not_come_up(spm: Path, tmp_path: Path) -> None:
    """A piece that is a control token there is none that a text becomes here."""
    tokenizer = load_tokenizer(spm)
    found = vocabulary_of(tokenizer)
    assert isinstance(found, ScoredVocabulary)
    once = tokenizer.encode("once", bos=False)
    assert len(once) == 1
    types = list(found.types)
    types[once[0]] = PieceType.CONTROL
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(tokenizer_bin(replace(found, types=types), tokenizer.vocab))
    again = load_tokenizer(path).encode("once", bos=False)
    assert again != once
    assert load_tokenizer(path).decode(again) == "once"


def altered(change: Callable[[dict[str, Any]], None], source: Path, folder: Path) -> Tokenizer:
    content = json.loads(source.read_text())
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return load_tokenizer(folder)


def swap_merges(content: dict[str, Any]) -> None:
    merges = content["model"]["merges"]
    made = ["".join(merge) for merge in merges]
    later = next(n for n in range(1, len(made)) if made[n] == made[n - 1])
    merges.append(merges.pop(later))


def drop_merge(content: dict[str, Any]) -> None:
    del content["model"]["merges"][-1]


def normalize(content: dict[str, Any]) -> None:
    content["normalizer"] = {"type": "NFC"}


def split_on_spaces(content: dict[str, Any]) -> None:
    content["pre_tokenizer"] = {"type": "WhitespaceSplit"}


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("hf_llama", swap_merges, "not those of a SentencePiece model"),
        ("hf_llama", drop_merge, "not those of a SentencePiece model"),
        ("hf_llama", normalize, "by NFC"),
        ("hf_llama", split_on_spaces, "by WhitespaceSplit"),
        ("hf_bytes", normalize, "normalizes characters"),
        ("hf_bytes", split_on_spaces, "by WhitespaceSplit"),
    ],
)
def test_other_tokenizers_are_refused(
    kind: str,
    change: Callable[[dict[str, Any]], None],
    message: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    tokenizer = altered(change, request.getfixturevalue(kind), tmp_path)
    with pytest.raises(TokenizerError, match=message) as raised:
        vocabulary_of(tokenizer)
    assert "\n" not in str(raised.value)


def test_unigram_is_refused(tmp_path: Path, lines: list[str]) -> None:
    from sentencepiece import SentencePieceTrainer

    prefix = tmp_path / "tokenizer"
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(prefix), model_type="unigram",
        vocab_size=45, minloglevel=2,
    )  # fmt: skip
    with pytest.raises(TokenizerError, match="unigram"):
        vocabulary_of(load_tokenizer(prefix.with_suffix(".model")))


def test_user_defined_pieces_are_known(tmp_path: Path, lines: list[str]) -> None:
    from sentencepiece import SentencePieceTrainer

    prefix = tmp_path / "tokenizer"
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(prefix), model_type="bpe",
        vocab_size=120, normalization_rule_name="identity", user_defined_symbols=["[INST]"],
        minloglevel=2,
    )  # fmt: skip
    found = vocabulary_of(load_tokenizer(prefix.with_suffix(".model")))
    assert isinstance(found, ScoredVocabulary)
    assert found.types[found.pieces.index("[INST]")] == PieceType.USER_DEFINED
    assert found.trims_spaces

"""Tokenizers of GGUF files: what the keys say, and what becomes of those that are not known."""

from pathlib import Path
from typing import Any

import pytest

from llama2gpu.errors import TokenizerError
from llama2gpu.tokenizer import load_tokenizer, tokenizer_of
from llama2gpu.training.words import given_words
from tests.checkpoints.gguf_files import spm_fields
from tests.tokenizer.test_embedded import gguf_of, merged_fields

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tokenizer__ggml__model": "bert"}, "tokenizer.ggml.model 'bert' is not supported"),
    ({"tokenizer__ggml__pre": "jina"}, "tokenizer.ggml.pre 'jina' is not supported"),
    ({"tokenizer__ggml__merges": None}, "has no list tokenizer.ggml.merges"),
    ({"tokenizer__ggml__merges": [1.5]}, "merges holds 1 values of type 'f'"),
    ({"tokenizer__ggml__add_bos_token": "yes"}, "add_bos_token must be true or false"),
]


@pytest.mark.parametrize(("fields", "match"), REFUSED)
def test_gguf_tokenizers_that_are_not_supported(
    tmp_path: Path, hf_bytes: Path, fields: dict[str, Any], match: str
) -> None:
    """The model opens, and runs with a tokenizer from elsewhere."""
    known = merged_fields(hf_bytes, "llama-bpe")
    checkpoint = gguf_of(tmp_path / "m.gguf", 400, **(known | fields))
    with pytest.raises(TokenizerError, match=match):
        tokenizer_of(checkpoint)
    assert tokenizer_of(checkpoint, hf_bytes).path == hf_bytes


def test_without_one_those_beside_serve(tmp_path: Path, spm: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(spm.read_bytes())
    checkpoint = gguf_of(tmp_path / "m.gguf", 400, tokenizer__ggml__model="none")
    assert tokenizer_of(checkpoint).path == tmp_path / "tokenizer.model"


def test_ends_of_turns_that_no_key_names(tmp_path: Path, hf_bytes: Path) -> None:
    checkpoint = gguf_of(tmp_path / "m.gguf", 400, **merged_fields(hf_bytes, "llama-bpe"))
    assert checkpoint.stop_ids == (1, 2)
    assert tokenizer_of(checkpoint).eos_ids == (1, 2)


def test_llama_3_begins_texts_where_no_key_tells(tmp_path: Path, hf_bytes: Path) -> None:
    for pre, adds in (("llama-bpe", True), ("gpt-2", False)):
        fields = merged_fields(hf_bytes, pre) | {"tokenizer__ggml__add_bos_token": None}
        tokenizer = tokenizer_of(gguf_of(tmp_path / "m.gguf", 400, **fields))
        assert (tokenizer.encode("a")[0] == 0) == adds


def test_empty_tokens_have_a_name(tmp_path: Path, spm: Path) -> None:
    fields = spm_fields(spm)
    fields["tokenizer__ggml__tokens"][-1] = ""
    tokenizer = tokenizer_of(gguf_of(tmp_path / "m.gguf", 400, **fields))
    assert tokenizer.piece(399) == "[EMPTY_399]"


def test_the_usual_ends_where_no_key_tells(tmp_path: Path, spm: Path) -> None:
    absent = dict.fromkeys(("tokenizer__ggml__bos_token_id", "tokenizer__ggml__eos_token_id"))
    checkpoint = gguf_of(tmp_path / "m.gguf", 400, **(spm_fields(spm) | absent))
    assert (checkpoint.bos_id, checkpoint.stop_ids) == (1, (2,))
    assert tokenizer_of(checkpoint).encode("a")[0] == 1


def test_more_tokens_than_rows(tmp_path: Path, spm: Path) -> None:
    checkpoint = gguf_of(tmp_path / "m.gguf", 399, **spm_fields(spm))
    with pytest.raises(TokenizerError, match="has 400 tokens, but the checkpoint has 399 embedd"):
        tokenizer_of(checkpoint)


def test_a_training_goes_on_with_it(tmp_path: Path, spm: Path) -> None:
    checkpoint = gguf_of(tmp_path / "m.gguf", 400, **spm_fields(spm))
    words = given_words(None, checkpoint)
    assert words.name == "tokenizer.model"
    (tmp_path / words.name).write_bytes(words.data)
    beside = load_tokenizer(tmp_path / words.name)
    assert beside.encode("once upon  a time") == words.tokenizer.encode("once upon  a time")
    assert (beside.bos_id, beside.eos_ids) == (1, (2,))

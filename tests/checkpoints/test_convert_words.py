"""Byte-level tokenizers in GGUF: the name of their words, and the same tokens once read."""

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from llama2gpu.checkpoints import RandomCheckpoint
from llama2gpu.checkpoints.gguf_names import Words
from llama2gpu.tokenizer import Tokenizer, load_tokenizer, tokenizer_of
from llama2gpu.tokenizer.tiktoken_format import WORDS
from tests.checkpoints.converting import CONFIG, written
from tests.training.conftest import make_text

#: Control tokens among the others, not before or after them.
SPECIALS = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"]
TEXTS = ("Tom's 12345 kites,  don’t\n\n fly  ", "naïve 日本 🙂<|eot_id|>\t", "")


def made(folder: Path, kind: str) -> Tokenizer:
    from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers
    from tokenizers import Tokenizer as Library

    letters = pre_tokenizers.ByteLevel(add_prefix_space=kind == "prefix", use_regex=True)
    bare = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(WORDS if kind == "llama-bpe" else r"\w+"), "isolated")
    digits = pre_tokenizers.Digits(individual_digits=True)
    known: dict[str, list[Any]] = {
        "gpt-2": [letters],
        "prefix": [letters],
        "smollm": [digits, letters],
    }
    library = Library(models.BPE(ignore_merges=kind == "llama-bpe"))
    library.pre_tokenizer = pre_tokenizers.Sequence(known.get(kind, [split, bare]))
    library.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=316, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    library.train_from_iterator([make_text()], trainer)
    library.post_processor = processors.TemplateProcessing(
        single=f"{SPECIALS[0]} $A", special_tokens=[(SPECIALS[0], 0)]
    )
    folder.mkdir()
    library.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder)


@pytest.mark.parametrize("kind", ["llama-bpe", "gpt-2", "smollm"])
def test_name_of_the_words(kind: str, tmp_path: Path) -> None:
    words = made(tmp_path / "words", kind)
    source = RandomCheckpoint(CONFIG, torch.float32)
    source.bos_id, source.stop_ids = 0, (1, 3, 2)
    found, tally = written(source, tmp_path / "out.gguf", "gguf", words)
    assert tally.notes == []
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    wanted = {
        Words.MODEL: "gpt2",
        Words.PRE: kind,
        Words.BOS: 0,
        Words.EOS: 1,
        Words.EOT: 2,
        Words.EOM: 3,
        Words.ADD_BOS: True,
    }
    for key, value in wanted.items():
        field = reader.get_field(key)
        assert field is not None
        assert field.contents() == value, key
    again = tokenizer_of(found)
    for text in TEXTS:
        assert again.encode(text, special=True) == words.encode(text, special=True)
    # and from there into a folder
    folder, _ = written(found, tmp_path / "folder", "hf", again)
    assert set(folder.stop_ids) == {1, 2, 3}
    for text in TEXTS:
        ids = tokenizer_of(folder).encode(text, special=True)
        assert ids == words.encode(text, special=True)


@pytest.mark.parametrize("kind", ["prefix", "others"])
def test_words_that_llama_cpp_does_not_split_so(kind: str, tmp_path: Path) -> None:
    words = made(tmp_path / "words", kind)
    source = RandomCheckpoint(CONFIG, torch.float32)
    found, tally = written(source, tmp_path / "out.gguf", "gguf", words)
    assert len(tally.notes) == 1
    assert "the tokenizer can't be written" in tally.notes[0]
    assert found.embedded_tokenizer() is None
    _, tally = written(source, tmp_path / "out.bin", "llama2c-v1", words)
    assert "the tokenizer can't be written" in tally.notes[0]
    assert not (tmp_path / "tokenizer.bin").exists()

"""Tokenizers of the kinds that chat models have, ours beside transformers'."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from llama2gpu.tokenizer import Tokenizer, load_tokenizer
from tests.chat.models import LLAMA_3_CONTROLS, pair, variant
from tests.tokenizer.conftest import hf_bytes as hf_bytes
from tests.tokenizer.conftest import hf_llama as hf_llama
from tests.tokenizer.conftest import lines as lines
from tests.tokenizer.conftest import llama2c as llama2c
from tests.tokenizer.conftest import spm as spm
from tests.tokenizer.conftest import tiktoken as tiktoken

Pair = tuple[Tokenizer, Any]


@pytest.fixture
def llama3(hf_bytes: Path, tmp_path: Path) -> Pair:
    path = variant(hf_bytes, tmp_path, LLAMA_3_CONTROLS)
    return pair(path, "<|begin_of_text|>", "<|eot_id|>")


@pytest.fixture
def llama2(hf_llama: Path, tmp_path: Path) -> Pair:
    """Llama 2's first tokenizer.json: a space before every part of a text."""
    return pair(variant(hf_llama, tmp_path), "<s>", "</s>")


@pytest.fixture
def llama2_first(hf_llama: Path, tmp_path: Path) -> Pair:
    """A later one: a space before the text alone."""
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    path = variant(hf_llama, tmp_path, normalizer=None, pre_tokenizer=metaspace)
    return pair(path, "<s>", "</s>")


@pytest.fixture
def llama2_model(spm: Path, tmp_path: Path) -> Pair:
    """Llama 2's tokenizer.model: a space before every part of a text, as Meta's code puts it."""
    from transformers import AutoTokenizer

    path = Path(shutil.copy(spm, tmp_path))
    made: Any = AutoTokenizer
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(path), made.from_pretrained(str(tmp_path))


@pytest.fixture(params=["llama3", "llama2", "llama2_first"])
def both(request: pytest.FixtureRequest) -> Pair:
    found: Pair = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=["llama3", "llama2", "llama2_first", "spm", "llama2c", "tiktoken"])
def words(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    """One tokenizer of each format."""
    found = request.getfixturevalue(request.param)
    if isinstance(found, Path):
        return load_tokenizer(shutil.copy(found, tmp_path))
    ours: Tokenizer = found[0]
    return ours

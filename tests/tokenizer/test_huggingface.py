"""tokenizer.json: against transformers, and what the files beside it say."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama2gpu.errors import RequestError, TokenizerError
from llama2gpu.tokenizer import Tokenizer, load_tokenizer

TEXT = st.text(st.characters(codec="utf-8")) | st.text("once apn'12 é😀\n<s>/|▁")


@pytest.fixture(scope="module", params=["hf_bytes", "hf_llama"])
def pair(request: pytest.FixtureRequest) -> tuple[Tokenizer, Any]:
    from transformers import PreTrainedTokenizerFast

    path: Path = request.getfixturevalue(request.param)
    fast: Any = PreTrainedTokenizerFast
    return load_tokenizer(path), fast(tokenizer_file=str(path), clean_up_tokenization_spaces=False)


@given(text=TEXT)
def test_encode_agrees_with_transformers(pair: tuple[Tokenizer, Any], text: str) -> None:
    ours, theirs = pair
    assert ours.encode(text, special=True) == theirs.encode(text)
    assert ours.encode(text) == theirs.encode(text, split_special_tokens=True)


@given(text=TEXT)
def test_decode_agrees_with_transformers(pair: tuple[Tokenizer, Any], text: str) -> None:
    ours, theirs = pair
    ids = theirs.encode(text)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def folder_of(source: Path, folder: Path, **beside: object) -> Path:
    (folder / "tokenizer.json").write_bytes(source.read_bytes())
    for name, content in beside.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_without_other_files_the_names_tell(hf_bytes: Path, hf_llama: Path) -> None:
    llama_3, llama_2 = load_tokenizer(hf_bytes), load_tokenizer(hf_llama)
    assert (llama_3.bos_id, llama_3.eos_ids) == (0, (1, 2))
    assert (llama_2.bos_id, llama_2.eos_ids) == (1, (2,))


def test_the_files_beside_it_tell(hf_bytes: Path, tmp_path: Path) -> None:
    folder = folder_of(
        hf_bytes,
        tmp_path,
        tokenizer_config={"bos_token": {"content": "<|eot_id|>"}, "eos_token": "no such token"},
        generation_config={"eos_token_id": [1, 2, 99999, None, "1", True, -1]},
        config={"eos_token_id": 5},
    )
    tokenizer = load_tokenizer(folder)
    assert tokenizer.bos_id == 2
    assert tokenizer.eos_ids == (1, 2, 5)
    assert tokenizer.token(5).control
    assert tokenizer.encode("a", bos=True) == tokenizer.encode("a", bos=False)


@pytest.mark.parametrize("switch", [True, False])
def test_add_bos_token_has_the_last_word(hf_bytes: Path, tmp_path: Path, switch: bool) -> None:
    tokenizer = load_tokenizer(
        folder_of(hf_bytes, tmp_path, tokenizer_config={"add_bos_token": switch})
    )
    assert (tokenizer.encode("a")[0] == tokenizer.bos_id) is switch


def test_an_eos_that_is_not_marked_special_is_still_control(hf_bytes: Path, tmp_path: Path) -> None:
    content = json.loads(hf_bytes.read_text())
    content["added_tokens"][2]["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(tmp_path)
    assert len(tokenizer.encode("a<|eot_id|>", special=True)) == 3
    assert 2 not in tokenizer.encode("a<|eot_id|>")


def test_nothing_is_padded_or_cut(hf_bytes: Path, tmp_path: Path) -> None:
    content = json.loads(hf_bytes.read_text())
    content["truncation"] = {
        "direction": "Right",
        "max_length": 70,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    content["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "x",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(tmp_path)
    assert len(tokenizer.encode("a")) == 2
    assert len(tokenizer.encode("?" * 90)) == 91


def test_text_that_can_only_be_a_control_token_is_refused(hf_bytes: Path, tmp_path: Path) -> None:
    content = json.loads(hf_bytes.read_text())
    pieces = [["<unk>", 0.0], ["<|eot_id|>", 0.0], ["h", -1.0]]
    content |= {"model": {"type": "Unigram", "vocab": pieces, "unk_id": 0}, "post_processor": None}
    content["pre_tokenizer"] = None
    content["added_tokens"] = [content["added_tokens"][2] | {"id": 1}]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("h<|eot_id|>", special=True)[-1:] == [1]
    with pytest.raises(RequestError, match=r"can't take <\|eot_id\|> as text"):
        tokenizer.encode("h<|eot_id|>")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 200_000, b'{"a":' * 200_000]
)
def test_a_damaged_file_beside_it_is_named(hf_bytes: Path, tmp_path: Path, content: bytes) -> None:
    (folder_of(hf_bytes, tmp_path) / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json"):
        load_tokenizer(tmp_path)


DECODERS = [
    ({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": True}, " a b"),
    ({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}, "a b"),
    ({"type": "WordPiece", "prefix": "##", "cleanup": True}, None),
    ({"type": "Replace", "pattern": {"Regex": "a"}, "content": ""}, None),
    (None, None),
]


@pytest.mark.parametrize(("decoder", "text"), DECODERS)
def test_decoders(hf_llama: Path, tmp_path: Path, decoder: object, text: str | None) -> None:
    content = json.loads(hf_llama.read_text()) | {"decoder": decoder}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    if text is None:
        with pytest.raises(TokenizerError, match="decoder"):
            load_tokenizer(tmp_path)
    else:
        tokenizer = load_tokenizer(tmp_path)
        assert tokenizer.decode(tokenizer.encode("a b")) == text


class PanicException(BaseException):
    """Named as the class that pyo3 raises for a panic, which can't be imported."""


@pytest.mark.parametrize(
    ("failure", "seen"),
    [(PanicException("a\nb"), RequestError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_panic_on_a_text_is_an_error(
    hf_bytes: Path, failure: BaseException, seen: type[BaseException]
) -> None:
    class Panics:
        encode_special_tokens = False

        def encode(self, text: str, add_special_tokens: bool) -> None:
            raise failure

    tokenizer: Any = load_tokenizer(hf_bytes)
    tokenizer.library = Panics()
    with pytest.raises(seen):
        tokenizer.encode("a")

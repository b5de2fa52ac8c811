"""Tokenizers within checkpoints give what the files give that they were made of."""

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llama2gpu.checkpoints import Checkpoint, open_checkpoint
from llama2gpu.checkpoints.gguf_splittings import SPLITTINGS
from llama2gpu.checkpoints.open import SHIPPED
from llama2gpu.checkpoints.save import save_huggingface
from llama2gpu.config import Config
from llama2gpu.errors import RequestError, TokenizerError
from llama2gpu.tokenizer import Tokenizer, load_tokenizer, tokenizer_of
from llama2gpu.vocabulary import Embedded, MergedVocabulary, ScoredVocabulary, TokenizerFile
from tests.checkpoints.gguf_files import llama2c_fields, spm_fields, write_gguf
from tests.checkpoints.writers import random_tensors

ODD = [
    *("", " ", "   two  spaces ", "\n", "\n\n \n\t\t", "\r\n", "a\u00a0b\u3000c"),
    *(
        "漢字テスト 한국어 العربية",
        "👩‍👩‍👧 😀🇫🇷",
        "e\u0301 ½ ² Ⅷ",
        "don't DON'T we'LL",
        "12345 6.7",
    ),
    *("<s>", "</s> <unk>", "<0x0A>", "<|eot_id|>x", "▁", "\0\x1b[0m", "{'a': [1]} // ..."),
]
TEXT = st.text(st.characters(codec="utf-8")) | st.lists(st.sampled_from(ODD)).map("".join)
SETTINGS = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Bare(Checkpoint):
    """A checkpoint that is a tokenizer and nothing else."""

    path = Path("bare")

    def __init__(self, embedded: Embedded | None, vocab: int = 400) -> None:
        self.embedded = embedded
        self.config = Config(
            dim=8, hidden=8, layers=1, heads=1, kv_heads=1, head_dim=8, vocab=vocab, context=8
        )

    def embedded_tokenizer(self) -> Embedded | None:
        return self.embedded

    def tensors(self) -> Any:
        raise NotImplementedError

    def read(self, name: str) -> torch.Tensor:
        raise NotImplementedError


def gguf_of(path: Path, vocab: int, **fields: Any) -> Checkpoint:
    config = Config(
        dim=8, hidden=8, layers=1, heads=1, kv_heads=1, head_dim=8, vocab=vocab, context=8
    )
    return open_checkpoint(write_gguf(path, config, random_tensors(config), **fields))


def entries_of(data: bytes) -> list[tuple[float, bytes]]:
    """Scores and texts of llama2.c's tokenizer.bin."""
    found, at = [], 4
    while at < len(data):
        score, size = struct.unpack_from("<fI", data, at)
        found.append((score, data[at + 8 : at + 8 + size]))
        at += 8 + size
    return found


def pieces_of(hf_bytes: Path) -> tuple[list[str], list[str]]:
    """Tokens and merges of a tokenizer.json."""
    model = json.loads(hf_bytes.read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return tokens, [" ".join(merge) for merge in model["merges"]]


def merged_fields(hf_bytes: Path, pre: str) -> dict[str, Any]:
    tokens, merges = pieces_of(hf_bytes)
    return {
        "tokenizer__ggml__model": "gpt2",
        "tokenizer__ggml__pre": pre,
        "tokenizer__ggml__tokens": tokens,
        "tokenizer__ggml__token_type": [3, 3, 3, *[1] * (len(tokens) - 3)],
        "tokenizer__ggml__merges": merges,
        "tokenizer__ggml__bos_token_id": 0,
        "tokenizer__ggml__eos_token_id": 1,
        "tokenizer__ggml__add_bos_token": True,
    }


Pair = tuple[Tokenizer, Tokenizer]


@pytest.fixture(scope="session", params=["trained", "shipped", "published", "bytes"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A tokenizer of a file, and the same within a GGUF file."""
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    if request.param == "bytes":
        beside = load_tokenizer(request.getfixturevalue("hf_bytes"))
        fields = merged_fields(beside.path, "gpt-2")
    elif request.param == "published":
        beside = load_tokenizer(request.getfixturevalue("tok512"))
        fields = llama2c_fields(entries_of(beside.path.read_bytes()))
    else:
        trained = request.param == "trained"
        beside = load_tokenizer(request.getfixturevalue("spm") if trained else SHIPPED["stories"])
        fields = spm_fields(beside.path)
    within = tokenizer_of(gguf_of(path, beside.vocab, **fields))
    assert within.path == path
    return beside, within


@SETTINGS
@given(text=TEXT, special=st.booleans())
@example("".join(ODD), False)
def test_the_same_ids(pair: Pair, text: str, special: bool) -> None:
    beside, within = pair
    if beside.format == "llama2.c":
        text = text.replace("▁", " ")  # which that format has no letter for
    ids = within.encode(text, special=special)
    assert ids == beside.encode(text, special=special)
    assert within.decode(ids) == beside.decode(ids)


@pytest.mark.parametrize("text", ODD)
def test_the_same_ids_of_odd_texts(pair: Pair, text: str) -> None:
    beside, within = pair
    if beside.format != "llama2.c" or "▁" not in text:
        assert within.encode(text) == beside.encode(text)


def test_the_same_tokens(pair: Pair) -> None:
    beside, within = pair
    assert (within.vocab, within.bos_id) == (beside.vocab, beside.bos_id)
    assert set(beside.eos_ids) <= {*within.eos_ids, 2}
    assert (within.adds_bos, within.leading) == (beside.adds_bos, beside.leading)
    for id in range(3, beside.vocab):
        assert within.token(id) == beside.token(id)
    assert beside.bos_id is not None
    assert all(within.token(id).control for id in (beside.bos_id, *beside.eos_ids))


@SETTINGS
@given(parts=st.lists(st.sampled_from(["<s>", "</s>", "<unk>", "<|eot_id|>", " a", "\n"])))
def test_a_user_can_not_write_a_control_token(pair: Pair, parts: list[str]) -> None:
    ids = pair[1].encode("".join(parts), bos=False)
    assert not any(pair[1].token(id).control for id in ids)


def scored(pieces: list[str], types: list[int], **how: Any) -> ScoredVocabulary:
    """The unknown, the two ends, the bytes, and these pieces."""
    fixed = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [2, 3, 3, *[6] * 256, *types]
    scores = [0.0] * 259 + [-float(n) for n in range(len(pieces))]
    return ScoredVocabulary([*fixed, *pieces], scores, kinds, **how)


def encode(embedded: Embedded, text: str, **how: Any) -> list[str]:
    tokenizer = tokenizer_of(Bare(embedded, vocab=600))
    return [tokenizer.token(id).text.decode() for id in tokenizer.encode(text, **how)]


def test_how_spaces_are_read() -> None:
    pieces, types = ["a", "▁", "▁a"], [1, 1, 1]
    assert encode(scored(pieces, types), "a  a") == ["<s>", " a", " ", " a"]
    assert encode(scored(pieces, types, space_prefix=False), "a a") == ["<s>", "a", " a"]
    assert encode(scored(pieces, types, trims_spaces=True), " a  a ") == ["<s>", " a", " a"]
    assert encode(scored(pieces, types, adds_bos=False), "a") == [" a"]


def test_tokens_of_the_users_own_are_found_in_texts() -> None:
    vocabulary = scored(["a", "▁", "<tool> x"], [1, 1, 4])
    assert encode(vocabulary, "a<tool> xa", bos=False) == [" ", "a", "<tool> x", "a"]
    ended = scored(["a", "▁", "<end>"], [1, 1, 4], eos_ids=(2, 261))
    assert "<end>" not in encode(ended, "a<end>")
    assert encode(ended, "a<end>", special=True, bos=False)[-1] == "<end>"
    assert tokenizer_of(Bare(ended)).eos_ids == (2, 261)


def merged(hf_bytes: Path, words: Sequence[str], **how: Any) -> MergedVocabulary:
    tokens, merges = pieces_of(hf_bytes)
    types = [3, 3, 4, *[1] * (len(tokens) - 3)]
    return MergedVocabulary(tokens, types, merges, words, bos_id=0, eos_ids=(1,), **how)


def test_byte_level_tokens_of_the_users_own(hf_bytes: Path) -> None:
    words = SPLITTINGS[0].words
    found = encode(merged(hf_bytes, words), "<|eot_id|><|end_of_text|>", bos=False)
    assert found[0] == "<|eot_id|>"
    assert "<|end_of_text|>" not in found


@pytest.mark.parametrize("splitting", SPLITTINGS, ids=lambda splitting: splitting.names[0])
@SETTINGS
@given(text=TEXT)
def test_every_splitting_keeps_the_text(hf_bytes: Path, splitting: Any, text: str) -> None:
    tokenizer = cached(hf_bytes, splitting.words)
    assert tokenizer.decode(tokenizer.encode(text)) == text


_BUILT: dict[Any, Tokenizer] = {}


def cached(hf_bytes: Path, words: tuple[str, ...]) -> Tokenizer:
    if words not in _BUILT:
        _BUILT[words] = tokenizer_of(Bare(merged(hf_bytes, words)))
    return _BUILT[words]


@SETTINGS
@given(text=TEXT)
def test_llama_3_splits_as_tiktoken(hf_bytes: Path, tiktoken: Path, text: str) -> None:
    """The same merges, by ranks and with Meta's own expression."""
    llama_3 = next(s for s in SPLITTINGS if "llama-bpe" in s.names)
    ours, ranks = cached(hf_bytes, tuple(llama_3.words)), load_tokenizer(tiktoken)
    text = text.replace("<|", "<")
    found = [ours.token(id).text for id in ours.encode(text, bos=False)]
    assert found == [ranks.token(id).text for id in ranks.encode(text, bos=False)]


SPLIT = {
    "llama-bpe": ["We", "'ll", " see", " ", "123", "45", "!!\n\n", " ", " x"],
    "qwen2": ["We", "'ll", " see", " ", "1", "2", "3", "4", "5", "!!\n\n", " ", " x"],
    "gpt-2": ["We", "'ll", " see", " 12345", "!!", "\n\n ", " x"],
    "smollm": ["We", "'ll", " see", " ", "1", "2", "3", "4", "5", "!!", "\n\n ", " x"],
    "tekken": ["We", "'ll", " see", " ", "1", "2", "3", "4", "5", "!!\n\n", " ", " x"],
    "falcon": ["We", "'", "ll", " see", " ", "123", "45", "!!", "\n\n ", " x"],
    "deepseek-coder": ["We", "'", "ll", " see", " ", "1", "2", "3", "4", "5", "!!"],
    "viking": ["We'll", " see", " ", "1", "2", "3", "4", "5", "!!\n\n ", " x"],
}


@pytest.mark.parametrize("name", SPLIT)
def test_words(name: str) -> None:
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Sequence, Split

    splitting = next(s for s in SPLITTINGS if name in s.names)
    split: Any = Sequence([Split(Regex(words), "isolated") for words in splitting.words])
    found = [word for word, _ in split.pre_tokenize_str("We'll see 12345!!\n\n  x")]
    assert found[: len(SPLIT[name])] == SPLIT[name]


def test_a_file_as_it_is(spm: Path, hf_bytes: Path) -> None:
    for path in (spm, hf_bytes):
        within = tokenizer_of(Bare(TokenizerFile(path.read_bytes())))
        assert within.encode("big red café") == load_tokenizer(path).encode("big red café")


def test_the_one_that_is_given_comes_first(spm: Path, hf_bytes: Path) -> None:
    bare = Bare(TokenizerFile(spm.read_bytes()))
    assert tokenizer_of(bare, hf_bytes).path == hf_bytes
    bare = Bare(None)
    bare.tokenizer_files = (spm,)
    assert tokenizer_of(bare).path == spm


BAD: list[tuple[Callable[[Path], Embedded], str]] = [
    (lambda _: scored(["a", "a"], [1, 1]), "is damaged or of another kind: .*already defined"),
    (lambda _: scored(["a"], [1, 1]), "are not equally many"),
    (lambda _: ScoredVocabulary(["<s>", "</s>", "a"], [0] * 3, [3, 3, 1], 0, (1,)), "no unknown"),
    (lambda _: scored([], [], bos_id=400), "token 400 is none of its 259"),
    (lambda path: merged(path, ("(",)), "is damaged or of another kind"),
    (lambda _: MergedVocabulary(["a", "a"], [1, 1], [], ()), "1 of its tokens are there twice"),
    (lambda _: MergedVocabulary(["a", "b"], [1, 1], ["a c"], ()), "out of vocabulary"),
    (lambda _: scored([], []), "has 259 tokens, but the checkpoint has 4096"),
]


@pytest.mark.parametrize(("make", "match"), BAD)
def test_vocabularies_that_make_no_tokenizer(
    hf_bytes: Path, make: Callable[[Path], Embedded], match: str
) -> None:
    with pytest.raises(TokenizerError, match=match) as error:
        tokenizer_of(Bare(make(hf_bytes), vocab=4096 if "4096" in match else 400))
    assert "\n" not in str(error.value)
    assert str(error.value).endswith("--tokenizer PATH")
    assert "bare" in str(error.value)


@pytest.mark.parametrize("kind", ["spm", "hf_bytes"])
def test_it_goes_along_into_a_folder(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    from transformers import AutoTokenizer

    path = request.getfixturevalue(kind)
    fields = spm_fields(path) if kind == "spm" else merged_fields(path, "llama-bpe")
    template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    checkpoint = gguf_of(tmp_path / "m.gguf", 400, tokenizer__chat_template=template, **fields)
    save_huggingface(checkpoint, tmp_path / "out")
    within, beside = tokenizer_of(checkpoint), tokenizer_of(open_checkpoint(tmp_path / "out"))
    theirs: Any = AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    for text in ("once upon a time  there\nwas", "big red café 12 345", "don't 😀"):
        assert within.encode(text) == beside.encode(text) == theirs(text)["input_ids"]
    assert theirs.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == (
        theirs.bos_token + "x"
    )


def test_a_text_that_spells_a_token_out(hf_bytes: Path) -> None:
    """A control token that is a whole word can't be had as text, and that is said."""
    vocabulary = merged(hf_bytes, (), whole_words=True)
    with pytest.raises(RequestError, match=r"can't take <\|end_of_text\|> as text"):
        tokenizer_of(Bare(vocabulary)).encode("<|end_of_text|>")

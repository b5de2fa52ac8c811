"""Each format against the program that defined it."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2gpu.errors import TokenizerError
from llama2gpu.tokenizer import Tokenizer, load_tokenizer
from llama2gpu.tokenizer.llama2c import Llama2C
from llama2gpu.tokenizer.tiktoken_format import WORDS
from tests.tokenizer.conftest import pack_llama2c

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="▁")) | st.text(
    "once apn'12 é😀\n<s>/"
)
BYTES = [(0.0, b"<0x%02X>" % byte) for byte in range(256)]
CONTROLS = [(0.0, b"<unk>"), (0.0, b"\n<s>\n"), (0.0, b"\n</s>\n")]
SCORES = st.sampled_from([-3.0, -2.0, -1.0, 0.0, 1.0, -1e10, float("nan"), float("-inf")])
PIECES = st.lists(st.tuples(SCORES, st.text("ab é", min_size=2, max_size=4)), max_size=40)


def naive_llama2c(entries: list[tuple[float, bytes]], text: str) -> list[int]:
    """run.c's encode, scan by scan; of equal texts the first counts, and only pieces do."""
    ids: dict[bytes, int] = {}
    for id, (_, piece) in enumerate(entries):
        if id >= 259:
            ids.setdefault(piece, id)
    tokens: list[int] = []
    for character in f" {text}" if text else "":
        data = character.encode()
        tokens += [ids[data]] if data in ids else [byte + 3 for byte in data]
    while True:
        best, at = -1e10, -1
        for n in range(len(tokens) - 1):
            id = ids.get(entries[tokens[n]][1] + entries[tokens[n + 1]][1], -1)
            if id >= 0 and entries[id][0] > best:
                best, at, merged = entries[id][0], n, id
        if at < 0:
            return tokens
        tokens[at : at + 2] = [merged]


@settings(max_examples=500)
@given(pieces=PIECES, text=st.text("ab é\n", max_size=20))
def test_llama2c_merges_as_run_c(pieces: list[tuple[float, str]], text: str) -> None:
    letters = [(0.0, letter.encode()) for letter in " abé"]
    entries = CONTROLS + BYTES + letters + [(score, piece.encode()) for score, piece in pieces]
    tokenizer = Llama2C([score for score, _ in entries], [piece for _, piece in entries])
    assert tokenizer.encode(text, bos=False) == naive_llama2c(entries, text)


@pytest.mark.parametrize("name", ["<0x0A>", "\n<s>\n"])
def test_llama2c_never_merges_text_into_a_control_or_byte_token(name: str) -> None:
    pieces = [*" \n<0xAs>", *(name[:end] for end in range(2, len(name)))]
    entries = CONTROLS + BYTES + [(1.0, piece.encode()) for piece in pieces]
    tokenizer = Llama2C([score for score, _ in entries], [piece for _, piece in entries])
    ids = tokenizer.encode(name, bos=False)
    assert len(ids) == 3
    assert tokenizer.decode(ids) == name


@given(text=TEXT)
def test_llama2c_agrees_with_sentencepiece(spm: Path, llama2c: Path, text: str) -> None:
    ids = loaded(llama2c).encode(text)
    assert ids == loaded(spm).encode(text)
    assert loaded(llama2c).decode(ids) == loaded(spm).decode(ids)


LOADED: dict[Path, Tokenizer] = {}


def loaded(path: Path) -> Tokenizer:
    if path not in LOADED:
        LOADED[path] = load_tokenizer(path)
    return LOADED[path]


def test_stories260k(tok512: Path) -> None:
    tokenizer = load_tokenizer(tok512, vocab=512)
    ids = tokenizer.encode("Once upon a time")
    assert ids == [1, 403, 407, 261, 378]
    assert tokenizer.decode(ids) == "Once upon a time"
    with pytest.raises(TokenizerError, match=r"512 tokens.*32000 embedding rows.*--tokenizer"):
        load_tokenizer(tok512, vocab=32000)


@given(text=TEXT, ids=st.lists(st.integers(3, 399), max_size=20))
def test_sentencepiece_agrees_with_its_library(spm: Path, text: str, ids: list[int]) -> None:
    from sentencepiece import SentencePieceProcessor

    library: Any = SentencePieceProcessor(model_file=str(spm))
    assert loaded(spm).encode(text) == [1, *library.encode(text)]
    assert loaded(spm).decode([1, *library.encode(text), 2]) == library.decode(library.encode(text))
    raw = b"".join(loaded(spm).token(id).text for id in ids)
    if "\ufffd" not in raw.decode("utf-8", "replace") and not raw.startswith(b" "):
        assert loaded(spm).decode(ids) == library.decode(ids)


@pytest.mark.parametrize("extra", [True, False])
@pytest.mark.parametrize("dummy", [True, False])
def test_sentencepiece_drops_the_spaces_that_its_library_drops(
    tmp_path: Path, lines: list[str], extra: bool, dummy: bool
) -> None:
    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

    SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(tmp_path / "tokenizer"),
        model_type="bpe",
        vocab_size=360,
        byte_fallback=True,
        minloglevel=2,
        remove_extra_whitespaces=extra,
        add_dummy_prefix=dummy,
    )
    tokenizer = load_tokenizer(tmp_path)
    library: Any = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    mark, a = library.piece_to_id("▁"), library.piece_to_id("▁a")
    for ids in ([mark, mark, a], [a, mark], [mark], [1, a, 1, a]):
        assert tokenizer.decode(ids) == library.decode(ids)


@given(text=TEXT)
def test_tiktoken_agrees_with_its_library(tiktoken: Path, text: str) -> None:
    import tiktoken as library
    from tiktoken.load import load_tiktoken_bpe

    if tiktoken not in LIBRARY:
        ranks = load_tiktoken_bpe(str(tiktoken))
        names = dict(loaded(tiktoken)._controls())
        LIBRARY[tiktoken] = library.Encoding(
            "test", pat_str=WORDS, mergeable_ranks=ranks, special_tokens=names
        )
    ids = LIBRARY[tiktoken].encode(text, disallowed_special=())
    assert loaded(tiktoken).encode(text, bos=False) == ids
    assert loaded(tiktoken).decode(ids) == LIBRARY[tiktoken].decode(ids)


LIBRARY: dict[Path, Any] = {}


def test_tiktoken_keeps_a_word_that_no_merge_reaches(tiktoken: Path, tmp_path: Path) -> None:
    rank = count_ranks(tiktoken)
    (tmp_path / "tokenizer.model").write_bytes(tiktoken.read_bytes() + b"cXpq %d\n" % rank)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("qzj", bos=False) == [rank]
    assert [tokenizer.piece(id) for id in tokenizer.encode("qzjq", bos=False)] == list("qzjq")


def test_tiktoken_names_the_control_tokens_of_3_and_of_3_1(tiktoken: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(tiktoken.read_bytes())
    newer, first = load_tokenizer(tmp_path), count_ranks(tiktoken)
    assert newer.eos_ids == (first + 1, first + 8, first + 9)
    assert newer.bos_id == first
    assert [newer.piece(first + n) for n in (4, 11, 12, 255)] == [
        "<|finetune_right_pad_id|>",
        "<|image|>",
        "<|reserved_special_token_2|>",
        "<|reserved_special_token_245|>",
    ]
    (tmp_path / "params.json").write_text('{"vocab_size": 128256}')
    older = load_tokenizer(tmp_path)
    assert older.eos_ids == (first + 1, first + 9)
    assert [older.piece(first + n) for n in (2, 5, 8, 10, 255)] == [
        f"<|reserved_special_token_{n}|>" for n in (0, 3, 4, 5, 250)
    ]
    (tmp_path / "params.json").write_text('{"use_scaled_rope": true}')
    assert load_tokenizer(tmp_path).eos_ids == newer.eos_ids


def count_ranks(path: Path) -> int:
    return len(path.read_bytes().splitlines())


def test_llama2c_bytes_must_be_where_the_format_puts_them(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(pack_llama2c([(0.0, b"piece")] * 300))
    with pytest.raises(TokenizerError, match="are not the 256 bytes"):
        load_tokenizer(path)

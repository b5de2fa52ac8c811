"""Promises of every format: round trips, streaming, and control tokens."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llama2gpu.tokenizer import Tokenizer
from llama2gpu.tokenizer.base import NO_TOKEN, readable

#: SentencePiece itself reads U+2581 as a space, so a text with it does not come back.
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="▁")) | st.text(
    "once apn'12 é😀\n<s>/"
)
IDS = st.lists(st.integers(0, 700), max_size=30)


@given(text=TEXT, bos=st.booleans())
@example("", False)
@example("   two  spaces ", True)
@example("\0\x1b\r\n\t e\u0301 漢字 👩‍👩‍👧 \u202e", True)
def test_text_comes_back(tokenizer: Tokenizer, text: str, bos: bool) -> None:
    ids = tokenizer.encode(text, bos=bos)
    assert tokenizer.decode(ids) == text
    assert all(0 <= id < tokenizer.vocab for id in ids)


@given(text=TEXT)
def test_bos_comes_first_and_once(tokenizer: Tokenizer, text: str) -> None:
    with_bos = tokenizer.encode(text)
    assert with_bos == [tokenizer.bos_id, *tokenizer.encode(text, bos=False)]


@given(text=TEXT, data=st.data())
def test_a_stream_gives_the_rest_of_the_text(
    tokenizer: Tokenizer, text: str, data: st.DataObject
) -> None:
    ids = tokenizer.encode(text)
    cut = data.draw(st.integers(0, len(ids)))
    first, decoder = tokenizer.decoder(), tokenizer.decoder(ids[:cut])
    before = "".join(map(first.push, ids[:cut]))
    assert before + "".join(map(decoder.push, ids[cut:])) + decoder.flush() == text


@given(ids=IDS)
def test_any_ids_stream_as_they_decode(tokenizer: Tokenizer, ids: list[int]) -> None:
    decoder = tokenizer.decoder()
    assert "".join(map(decoder.push, ids)) + decoder.flush() == tokenizer.decode(ids)
    raw = b"".join(t.text for t in map(tokenizer.token, ids) if not t.control)
    whole = raw.decode("utf-8", "replace")
    assert tokenizer.decode(ids) == (whole.removeprefix(" ") if tokenizer.leading else whole)


def byte_id(tokenizer: Tokenizer, byte: int) -> int:
    return next(
        id for id in range(tokenizer.vocab) if tokenizer.token(id) == (bytes([byte]), False)
    )


def test_bytes_wait_for_their_character_and_no_longer(tokenizer: Tokenizer) -> None:
    decoder = tokenizer.decoder()
    emoji = [byte_id(tokenizer, byte) for byte in "😀".encode()]
    assert [decoder.push(id) for id in emoji] == ["", "", "", "😀"]
    cut = [decoder.push(id) for id in (*emoji[:2], byte_id(tokenizer, ord("!")))]
    assert cut == ["", "", "\ufffd!"]
    assert decoder.push(byte_id(tokenizer, 0xFF)) == "\ufffd"
    assert decoder.push(emoji[0]) == ""
    assert decoder.flush() == "\ufffd"
    assert decoder.flush() == ""


def test_a_control_token_gives_no_text_but_has_a_name(tokenizer: Tokenizer) -> None:
    assert tokenizer.bos_id is not None
    for id in (tokenizer.bos_id, *tokenizer.eos_ids):
        assert tokenizer.decode([id]) == ""
        assert tokenizer.piece(id).startswith("<")
        assert tokenizer.encode(f"a{tokenizer.piece(id)}b", special=True).count(id) == 1 + (
            id == tokenizer.bos_id
        )


@given(
    parts=st.lists(st.sampled_from(["<s>", "</s>", "<|eot_id|>", "<|begin_of_text|>", " a", "\n"]))
)
def test_a_user_can_not_write_a_control_token(tokenizer: Tokenizer, parts: list[str]) -> None:
    ids = tokenizer.encode("".join(parts), bos=False)
    assert not any(tokenizer.token(id).control for id in ids)
    assert tokenizer.decode(ids) == "".join(parts)


@pytest.mark.parametrize("special", [False, True])
def test_text_without_control_names_is_the_same_with_special(
    tokenizer: Tokenizer, special: bool
) -> None:
    assert tokenizer.decode(tokenizer.encode("a b", special=special)) == "a b"


@pytest.mark.parametrize("id", [-1, 10**6, 1 << 40])
def test_an_id_without_a_token_is_empty(tokenizer: Tokenizer, id: int) -> None:
    assert tokenizer.token(id) is NO_TOKEN
    assert tokenizer.decode([id]) == ""
    assert tokenizer.piece(id) == "<no token>"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("a\udcffb", "a\ufffdb"),
        ("\udce2\udc82\udcac", "€"),
        ("x\ud800", "x\ufffd"),
        ("\ud83d\ude00", "\ufffd\ufffd"),
    ],
)
def test_lone_surrogates_are_replaced(tokenizer: Tokenizer, given: str, meant: str) -> None:
    for special in (False, True):
        assert tokenizer.encode(given, special=special) == tokenizer.encode(meant, special=special)


def test_every_piece_is_printable(tokenizer: Tokenizer) -> None:
    pieces = [tokenizer.piece(id) for id in range(tokenizer.vocab)]
    assert all(piece and piece.isprintable() for piece in pieces)
    assert tokenizer.piece(byte_id(tokenizer, 0xE2)) == "<0xE2>"
    assert readable(b"\n\x1b[2J") == "\\n\\x1b[2J"


def test_a_long_prompt_of_one_word(tokenizer: Tokenizer) -> None:
    text = "once" * 30_000
    assert tokenizer.decode(tokenizer.encode(text)) == text

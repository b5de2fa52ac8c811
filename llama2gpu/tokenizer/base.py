"""What every tokenizer does, and how its tokens become text again."""

import re
from abc import ABC, abstractmethod
from codecs import getincrementaldecoder
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple


class Token(NamedTuple):
    """What one id stands for: bytes of a text, or a control token's name."""

    text: bytes
    control: bool = False


NO_TOKEN = Token(b"<no token>", control=True)


class Tokenizer(ABC):
    """Text to ids and back.

    format: what the file is, for people.
    vocab: number of ids; the largest id is below it.
    bos_id: token that starts a text, where there is one.
    eos_ids: tokens that end a text.
    adds_bos: whether the model was trained on texts that start with `bos_id`.
    leading: how many spaces `decode` drops at the start of a text.
    path: the file that was read; set by `load_tokenizer` and `find_tokenizer`.
    """

    format: ClassVar[str]
    path: Path
    vocab: int
    bos_id: int | None
    eos_ids: tuple[int, ...]
    adds_bos: bool = True
    leading: int = 1

    @abstractmethod
    def _encode(self, text: str) -> list[int]:
        """Ids of plain text; never a control token."""

    @abstractmethod
    def _token(self, id: int) -> Token:
        """The token of an id in 0 to `vocab` - 1."""

    @abstractmethod
    def _controls(self) -> Mapping[str, int]:
        """Control tokens by the name that `encode(special=True)` finds in a text."""

    def encode(self, text: str, *, bos: bool = True, special: bool = False) -> list[int]:
        """Ids of `text`, after `bos_id` where `bos` is set and the model expects it.

        A control token's name in the text is plain text unless `special` is set.
        Undecodable bytes of the command line (surrogates) are read as UTF-8, and as U+FFFD
        where they are none.
        """
        text = well_formed(text)
        ids = self._encode_special(text) if special else self._encode(text)
        if bos and self.adds_bos and self.bos_id is not None:
            ids.insert(0, self.bos_id)
        return ids

    def encode_rendered(self, text: str, stand_ins: Mapping[str, str]) -> list[int]:
        """Ids of a text whose control tokens' names are meant, but for those that were typed.

        stand_ins: single characters, each in place of one in what a user typed, which the ids are
        of; a name that has one is plain text. No BOS is put before it.
        Raises `RequestError` where the tokenizer can't take such a name as text.
        """
        plain = text.translate({ord(stand_in): own for stand_in, own in stand_ins.items()})
        meant = self._find_controls(text)
        if meant == self._find_controls(plain):
            ids = self._encode_special(plain)
            if self._are(ids, meant):
                return ids
        ids, end = [], 0
        for start, name in [*meant, (len(plain), "")]:
            part = plain[end:start]
            ids += self._encode_after(part) if end else self._encode(part)
            ids += [self._controls()[name]] if name else []
            end = start + len(name)
        return ids

    def control_names(self) -> tuple[str, ...]:
        """Names of the control tokens, as `encode(special=True)` finds them."""
        return tuple(self._controls())

    def controls_in(self, text: str) -> list[str]:
        """Names of the control tokens that `encode(special=True)` finds in a text."""
        return [name for _, name in self._find_controls(text)]

    def _encode_after(self, text: str) -> list[int]:
        """Ids of plain text that a control token stands before."""
        return self._encode(text)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        names = sorted(self._controls(), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names)) or "(?!)")

    def _find_controls(self, text: str) -> list[tuple[int, str]]:
        """Where control tokens' names stand, and which."""
        return [(found.start(), found[0]) for found in self._pattern.finditer(text)]

    def _are(self, ids: Sequence[int], meant: Sequence[tuple[int, str]]) -> bool:
        """Whether the control tokens among `ids` are those that were meant."""
        controls = self._controls()
        known = set(controls.values())
        return [id for id in ids if id in known] == [controls[name] for _, name in meant]

    def _encode_special(self, text: str) -> list[int]:
        ids, end = [], 0
        for start, name in [*self._find_controls(text), (len(text), "")]:
            ids += self._encode(text[end:start])
            ids += [self._controls()[name]] if name else []
            end = start + len(name)
        return ids

    def token(self, id: int) -> Token:
        """The token of any id; rows that only pad the embedding have `NO_TOKEN`."""
        return self._token(id) if 0 <= id < self.vocab else NO_TOKEN

    def piece(self, id: int) -> str:
        """One token for people: printable, bytes of a part of a character as `<0xE2>`."""
        return readable(self.token(id).text)

    def decoder(self, context: Sequence[int] = ()) -> "StreamDecoder":
        """Decodes ids one by one, giving only the text that comes after `context`."""
        return StreamDecoder(self, context)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`: control tokens give none, bytes that are no UTF-8 give U+FFFD."""
        decoder = self.decoder()
        return "".join(map(decoder.push, ids)) + decoder.flush()


class StreamDecoder:
    """Ids to text, one at a time; bytes are held back until they are a whole character.

    All pushes and the flush give together what `decode` gives of `context` and these ids,
    less the text of `context`.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        self._token = tokenizer.token
        self._leading = tokenizer.leading
        self._utf8 = getincrementaldecoder("utf-8")("replace")
        for id in context:
            self.push(id)

    def push(self, id: int) -> str:
        """The characters that `id` completes; perhaps none."""
        token = self._token(id)
        return "" if token.control else self._utf8.decode(self._trim(token.text))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for the bytes of a cut character, or nothing."""
        return self._utf8.decode(b"", final=True)

    def _trim(self, data: bytes) -> bytes:
        if not self._leading or not data:
            return data
        rest = data.lstrip(b" ")
        dropped = min(len(data) - len(rest), self._leading)
        self._leading = 0 if rest else self._leading - dropped
        return data[dropped:]


def well_formed(text: str) -> str:
    """`text` without lone surrogates, which no tokenizer library takes.

    Those that stand for undecodable bytes (`surrogateescape`) become these bytes, read as UTF-8
    with replacement; any other is U+FFFD.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        text = re.sub("[\ud800-\udc7f\udd00-\udfff]", "\ufffd", text)
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return text


def readable(data: bytes) -> str:
    """Bytes as printable text: control characters escaped, bytes that are no UTF-8 in hex."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return "".join(f"<0x{byte:02X}>" for byte in data)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

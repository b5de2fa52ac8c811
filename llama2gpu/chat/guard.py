"""What a user types never becomes a control token.

A template gets the user's texts with stand-ins for the characters that control tokens are spelled
with, so that none has a character of the user's. In the text that it renders they mark what was
typed.
"""

from collections.abc import Iterable, Mapping
from secrets import randbelow
from typing import Any

from llama2gpu.errors import RequestError
from llama2gpu.tokenizer import well_formed

#: Private characters (planes 15 and 16); one that no text here has can't be guessed or typed.
_FIRST, _COUNT = 0xF0000, 0x1FFFE
_DEEPEST = 64


class Guard:
    """Stand-ins for one conversation.

    back: the character of each stand-in.
    """

    def __init__(self, back: Mapping[str, str], names: Iterable[str] = ()) -> None:
        self.back = dict(back)
        self._table = str.maketrans({own: stand_in for stand_in, own in self.back.items()})
        self._names = tuple(names)

    @classmethod
    def of(cls, names: Iterable[str], seen: str) -> "Guard":
        """For the control tokens `names`, white space apart, which templates trim.

        No character of the text `seen` stands for another.
        """
        taken, back = set(seen), {}
        for character in sorted(set("".join("".join(names).split()))):
            while (stand_in := chr(_FIRST + randbelow(_COUNT))) in taken:
                continue
            taken.add(stand_in)
            back[stand_in] = character
        return cls(back)

    def only(self, names: Iterable[str]) -> "Guard":
        """The same stand-ins, but for these names where they are whole and for nothing else."""
        return Guard(self.back, names)

    def put(self, value: Any) -> Any:
        """A text with its stand-ins; and of all texts in a list or an object."""
        if isinstance(value, str):
            return self._put(value)
        if isinstance(value, list):
            return [self.put(item) for item in value]
        if isinstance(value, dict):
            return {self._key(key): self.put(item) for key, item in value.items()}
        return value

    def _key(self, key: str) -> str:
        """Templates ask for fields by their names, which are words; others may be typed ones."""
        return key if key.isidentifier() else self._put(key)

    def _put(self, text: str) -> str:
        if not self._names:
            return text.translate(self._table)
        for name in sorted(self._names, key=len, reverse=True):
            text = text.replace(name, name.translate(self._table))
        return text

    def restore(self, text: str) -> str:
        """What a text reads as."""
        return text.translate({ord(stand_in): own for stand_in, own in self.back.items()})


def plain(value: Any, depth: int = 0) -> Any:
    """What JSON can hold, with well-formed texts; raises `RequestError` for anything else."""
    if depth > _DEEPEST:
        raise RequestError(f"a message is nested more than {_DEEPEST} deep: make it flat")
    if isinstance(value, str):
        return well_formed(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [plain(item, depth + 1) for item in value]
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise RequestError("a message has a key that is no string: name its fields by strings")
        return {well_formed(key): plain(item, depth + 1) for key, item in value.items()}
    raise RequestError(f"a message holds a {type(value).__name__}: give what JSON can hold")

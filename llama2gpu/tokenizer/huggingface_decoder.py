"""The decoder of a tokenizer.json, taken apart into the bytes of single tokens.

Decoding by single tokens is what lets a text stream: the library decodes whole lists only.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers.decoders import Decoder

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass
class TokenBytes:
    """Gives the bytes that a token adds to a text, by its name in the vocabulary.

    leading: how many spaces are dropped at the start of a text.
    """

    leading: int = 0
    replaced: list[tuple[str, str]] = field(default_factory=list)
    byte_fallback: bool = False
    byte_level: bool = False

    @classmethod
    def of(cls, decoder: "Decoder | None") -> "TokenBytes":
        """Reads the library's decoder; raises `ValueError` where no Llama has its kind."""
        result = cls()
        spec = None if decoder is None else json.loads(decoder.__getstate__())
        for step in _steps(spec):
            result._add(step)
        return result

    def _add(self, step: dict[str, Any]) -> None:
        match step:
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
                self.replaced.append((old, new))
            case {"type": "Metaspace", "replacement": str(mark), "prepend_scheme": str(scheme)}:
                self.replaced.append((mark, " "))
                self.leading = 0 if scheme == "never" else 1
            case {"type": "Strip", "content": " ", "start": int(start), "stop": 0}:
                self.leading = start
            case {"type": "ByteFallback"}:
                self.byte_fallback = True
            case {"type": "ByteLevel"}:
                self.byte_level = True
            case {"type": "Fuse"}:
                pass
            case _:
                kind = step.get("type")
                raise ValueError(f"its decoder {kind} is none that a Llama has")

    def __call__(self, name: str) -> bytes:
        """Bytes of the token called `name`."""
        for old, new in self.replaced:
            name = name.replace(old, new)
        if self.byte_fallback and (byte := _BYTE.fullmatch(name)):
            return bytes([int(byte[1], 16)])
        if self.byte_level and all(character in byte_letters() for character in name):
            return bytes(byte_letters()[character] for character in name)
        return name.encode()


def is_byte(name: str) -> bool:
    """Whether a token stands for one byte, as SentencePiece spells it."""
    return _BYTE.fullmatch(name) is not None


def _steps(spec: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if spec is None:
        raise ValueError("it has no decoder")
    if spec.get("type") != "Sequence":
        yield spec
        return
    for step in spec["decoders"]:
        yield from _steps(step)


@cache
def byte_letters() -> dict[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for.

    Printable Latin-1 stands for itself, the other bytes follow from U+0100 on (GPT-2's encoder.py).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(0x100 + n): byte for n, byte in enumerate(others)}

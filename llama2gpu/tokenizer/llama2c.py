"""llama2.c's tokenizer.bin: scored tokens, merged greedily.

uint32 length of the longest token; then for each token float32 score, uint32 length, bytes.
Source: karpathy/llama2.c, tokenizer.py and run.c.
"""

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from llama2gpu.tokenizer.base import Token, Tokenizer
from llama2gpu.tokenizer.files import MAX_TOKENS, check_vocab, damaged
from llama2gpu.tokenizer.merge import merge

BOS, EOS = 1, 2
_BYTES = 3
PIECES = _BYTES + 256
_LONGEST = 1 << 16

#: run.c starts its search for the best pair from here, so a score at or below it never merges.
UNMERGED = -1e10


class Llama2C(Tokenizer):
    """`tokenizer.bin`: BOS is 1, EOS is 2, byte b is b + 3; the rest are pieces with a score."""

    format = "llama2.c"
    bos_id = BOS
    eos_ids = (EOS,)

    def __init__(self, scores: list[float], texts: list[bytes]) -> None:
        self.vocab = len(texts)
        self.scores, self.texts = scores, texts
        # Text that spells out a control or byte token stays text, so only pieces are looked up.
        self._ids: dict[bytes, int] = {}
        for id in range(PIECES, self.vocab):
            self._ids.setdefault(texts[id], id)

    def _encode(self, text: str) -> list[int]:
        if not text:
            return []
        ids: list[int] = []
        for character in f" {text}":
            data = character.encode()
            id = self._ids.get(data)
            ids.extend([id] if id is not None else [byte + _BYTES for byte in data])
        return merge(ids, self._join)

    def _join(self, left: int, right: int) -> tuple[float, int] | None:
        id = self._ids.get(self.texts[left] + self.texts[right])
        if id is None or not self.scores[id] > UNMERGED:
            return None
        return -self.scores[id], id

    def _token(self, id: int) -> Token:
        if id in (BOS, EOS):
            return Token(self.texts[id].strip(), control=True)
        if _BYTES <= id < PIECES:
            return Token(bytes([id - _BYTES]))
        return Token(self.texts[id])

    def _controls(self) -> Mapping[str, int]:
        return {"<s>": BOS, "</s>": EOS}


def read_llama2c(path: Path, data: bytes, vocab: int | None) -> Llama2C:
    """Reads tokenizer.bin, which must hold exactly `vocab` tokens where that is given."""
    scores: list[float] = []
    texts: list[bytes] = []
    for score, text in _entries(path, data):
        scores.append(score)
        texts.append(text)
        if len(texts) > MAX_TOKENS:
            raise damaged(path, f"more than {MAX_TOKENS} tokens")
    if texts[_BYTES:PIECES] != [b"<0x%02X>" % byte for byte in range(256)]:
        raise damaged(path, f"tokens {_BYTES} to {PIECES - 1} are not the 256 bytes")
    check_vocab(path, len(texts), vocab, padding=0)
    return Llama2C(scores, texts)


def _entries(path: Path, data: bytes) -> Iterator[tuple[float, bytes]]:
    if len(data) < 4:
        raise damaged(path, f"only {len(data)} bytes")
    (longest,) = struct.unpack_from("<I", data)
    if not 0 < longest <= _LONGEST:
        raise damaged(path, f"no known format, and as tokenizer.bin its longest token is {longest}")
    at = 4
    while at < len(data):
        if len(data) - at < 8:
            raise damaged(path, f"it ends inside the token at byte {at}")
        score, length = struct.unpack_from("<fI", data, at)
        if length > longest:
            raise damaged(path, f"the token at byte {at} is longer than the longest ({longest})")
        if len(data) - at - 8 < length:
            raise damaged(path, f"it ends inside the token at byte {at}")
        yield score, data[at + 8 : at + 8 + length]
        at += 8 + length

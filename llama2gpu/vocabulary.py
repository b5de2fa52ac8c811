"""A tokenizer that lies within a checkpoint, as data: readers give it, `tokenizer` builds on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum


class PieceType(IntEnum):
    """What a piece is; the numbers are SentencePiece's, and GGUF's."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class ScoredVocabulary:
    """SentencePiece's BPE: the neighbours whose join has the highest score are merged first.

    pieces: text of each id, spaces as "▁", byte b as "<0xNN>". types: `PieceType` of each.
    adds_bos: whether texts start with `bos_id`. space_prefix: whether a text is read as if a space
    stood before it. trims_spaces: whether spaces at its ends and repeated ones are dropped.
    """

    pieces: Sequence[str]
    scores: Sequence[float]
    types: Sequence[int]
    bos_id: int | None = 1
    eos_ids: tuple[int, ...] = (2,)
    adds_bos: bool = True
    space_prefix: bool = True
    trims_spaces: bool = False


@dataclass(frozen=True)
class MergedVocabulary:
    """Byte-level BPE: words are split off by `words`, then their letters merged by rank.

    pieces: text of each id, in GPT-2's letters for bytes. types: `PieceType` of each. merges: two
    pieces with a space between, best first. words: regular expressions, each applied within the
    parts that those before left. whole_words: whether a word that is a piece is not merged.
    """

    pieces: Sequence[str]
    types: Sequence[int]
    merges: Sequence[str]
    words: Sequence[str]
    whole_words: bool = False
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    adds_bos: bool = True


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer's file as it is, in a format that tells itself by its content."""

    data: bytes


Embedded = ScoredVocabulary | MergedVocabulary | TokenizerFile

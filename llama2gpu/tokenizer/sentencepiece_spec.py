"""What a SentencePiece model says of itself, beyond what the library's processor tells.

Source: google/sentencepiece, `sentencepiece_model.proto`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3
_TYPE, _NORMAL = 3, 1
_MODEL_TYPE, _BPE, _UNIGRAM = 3, 2, 1
_CHARACTER_MAP, _DUMMY_PREFIX, _EXTRA_SPACES, _ESCAPES = 2, 3, 4, 5


@dataclass(frozen=True)
class SpecOfModel:
    """How a model splits: whether it merges pairs; what it does to a text before.

    types: of each piece, by the numbers of `vocabulary.PieceType`.
    """

    types: list[int]
    merges: bool
    replaces_characters: bool
    space_prefix: bool
    trims_spaces: bool
    escapes_spaces: bool


def read_spec(data: bytes) -> SpecOfModel:
    """The fields of a serialized model that is known to be whole."""
    types: list[int] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(data):
        assert isinstance(value, bytes)
        if number == _PIECE:
            types.append(int(dict(_fields(value)).get(_TYPE, _NORMAL)))
        elif number == _TRAINER:
            trainer.update(_fields(value))
        elif number == _NORMALIZER:
            normalizer.update(_fields(value))
    return SpecOfModel(
        types,
        merges=trainer.get(_MODEL_TYPE, _UNIGRAM) == _BPE,
        replaces_characters=bool(normalizer.get(_CHARACTER_MAP)),
        space_prefix=bool(normalizer.get(_DUMMY_PREFIX, True)),
        trims_spaces=bool(normalizer.get(_EXTRA_SPACES, True)),
        escapes_spaces=bool(normalizer.get(_ESCAPES, True)),
    )


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of a protobuf message's fields; those of fixed size as bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        length, at = (8, at) if kind == 1 else (4, at) if kind == 5 else _varint(data, at)
        yield number, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at

"""SentencePiece's tokenizer.model: written from a vocabulary, and read for what says how it splits.

A protobuf of few fields, so no library is needed: their numbers are those of
https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
"""

from dataclasses import dataclass
from pathlib import Path

from llama2gpu.errors import TokenizerError
from llama2gpu.tokenizer.files import damaged
from llama2gpu.tokenizer.protobuf import fields, integer, message, real, text
from llama2gpu.vocabulary import PieceType, ScoredVocabulary

_SPACE = "▁"
_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3
# of a piece
_TEXT, _SCORE, _TYPE = 1, 2, 3
# of the trainer
_MODEL_TYPE, _SIZE, _BYTE_FALLBACK = 3, 4, 35
_UNKNOWN, _BOS, _EOS, _PADDING = 40, 41, 42, 43
_UNKNOWN_TEXT, _BOS_TEXT, _EOS_TEXT = 45, 46, 47
_UNIGRAM, _BPE = 1, 2
# of the normalizer
_NAME, _CHARACTER_MAP, _SPACE_PREFIX, _TRIMS_SPACES, _ESCAPES_SPACES = 1, 2, 3, 4, 5


def model_bytes(vocabulary: ScoredVocabulary, path: Path) -> bytes:
    """The file. path: where the vocabulary comes from, for errors.

    Raises `TokenizerError` where pieces, scores and types do not make a model.
    """
    types = _types(vocabulary, path)
    pieces = [
        piece.replace(" ", _SPACE) if kind == PieceType.USER_DEFINED else piece
        for piece, kind in zip(vocabulary.pieces, types, strict=True)
    ]
    rows = zip(pieces, vocabulary.scores, types, strict=True)
    body = b"".join(
        message(_PIECE, text(_TEXT, piece) + real(_SCORE, score) + integer(_TYPE, kind))
        for piece, score, kind in rows
    )
    bos, eos = vocabulary.bos_id, next(iter(vocabulary.eos_ids), None)
    unknown = types.index(PieceType.UNKNOWN)
    trainer = integer(_MODEL_TYPE, _BPE) + integer(_SIZE, len(pieces))
    trainer += integer(_BYTE_FALLBACK, int(PieceType.BYTE in types))
    for number, name, id in (
        (_UNKNOWN, _UNKNOWN_TEXT, unknown),
        (_BOS, _BOS_TEXT, bos),
        (_EOS, _EOS_TEXT, eos),
    ):
        trainer += integer(number, -1 if id is None else id)
        trainer += b"" if id is None else text(name, pieces[id])
    normalizer = text(_NAME, "identity") + integer(_SPACE_PREFIX, int(vocabulary.space_prefix))
    normalizer += integer(_TRIMS_SPACES, int(vocabulary.trims_spaces))
    normalizer += integer(_ESCAPES_SPACES, 1)
    trainer += integer(_PADDING, -1)
    return body + message(_TRAINER, trainer) + message(_NORMALIZER, normalizer)


def _types(vocabulary: ScoredVocabulary, path: Path) -> list[int]:
    """Types such that there is one unknown piece, and that the ends of texts are control pieces."""
    types = list(vocabulary.types)
    if len({len(types), len(vocabulary.pieces), len(vocabulary.scores)}) > 1:
        raise damaged(path, "its tokens, scores and types are not equally many")
    for id in (vocabulary.bos_id, *vocabulary.eos_ids):
        if id is not None and not 0 <= id < len(types):
            raise damaged(path, f"token {id} is none of its {len(types)}")
        if id is not None:
            types[id] = PieceType.CONTROL
    known = [n for n, kind in enumerate(types) if kind == PieceType.UNKNOWN]
    if not known:
        known = [n for n, piece in enumerate(vocabulary.pieces) if piece == "<unk>"][:1]
    if not known:
        raise TokenizerError(
            f"{path}: its vocabulary has no unknown token, which SentencePiece needs: "
            "give its tokenizer.model or tokenizer.json with --tokenizer PATH"
        )
    for n in known:
        types[n] = PieceType.UNKNOWN if n == known[0] else PieceType.CONTROL
    return types


@dataclass(frozen=True)
class ModelSpec:
    """What a model says that the library's processor does not tell.

    types: `PieceType` of each piece. merges: whether it is BPE. replaces_characters: whether it
    normalizes a text by a table; the others as in `ScoredVocabulary`.
    """

    types: list[int]
    merges: bool
    replaces_characters: bool
    space_prefix: bool
    trims_spaces: bool
    escapes_spaces: bool


def read_spec(data: bytes) -> ModelSpec:
    """The fields of a file's bytes. Raises `ValueError` for what is no such protobuf."""
    types: list[int] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in fields(data):
        if isinstance(value, int) or number not in (_PIECE, _TRAINER, _NORMALIZER):
            continue
        if number == _PIECE:
            types.append(int(dict(fields(value)).get(_TYPE, PieceType.NORMAL)))
        else:
            (trainer if number == _TRAINER else normalizer).update(fields(value))
    return ModelSpec(
        types,
        merges=trainer.get(_MODEL_TYPE, _UNIGRAM) == _BPE,
        replaces_characters=bool(normalizer.get(_CHARACTER_MAP)),
        space_prefix=bool(normalizer.get(_SPACE_PREFIX, True)),
        trims_spaces=bool(normalizer.get(_TRIMS_SPACES, True)),
        escapes_spaces=bool(normalizer.get(_ESCAPES_SPACES, True)),
    )

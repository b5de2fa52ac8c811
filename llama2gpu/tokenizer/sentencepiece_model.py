"""Writing SentencePiece's tokenizer.model from a vocabulary.

A protobuf of few fields, so no library is needed: numbers and types of fields are those of
https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
"""

import struct
from pathlib import Path

from llama2gpu.errors import TokenizerError
from llama2gpu.tokenizer.files import damaged
from llama2gpu.vocabulary import PieceType, ScoredVocabulary

_VARINT, _BYTES, _FLOAT = 0, 2, 5
_BPE = 2
_SPACE = "▁"


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
        _message(1, _text(1, piece) + _field(2, _FLOAT) + struct.pack("<f", score) + _int(3, kind))
        for piece, score, kind in rows
    )
    bos, eos = vocabulary.bos_id, next(iter(vocabulary.eos_ids), None)
    unknown = types.index(PieceType.UNKNOWN)
    trainer = _int(3, _BPE) + _int(4, len(pieces)) + _int(35, int(PieceType.BYTE in types))
    for number, name, id in ((40, 45, unknown), (41, 46, bos), (42, 47, eos)):
        trainer += _int(number, -1 if id is None else id)
        trainer += b"" if id is None else _text(name, pieces[id])
    normalizer = _text(1, "identity") + _int(3, int(vocabulary.space_prefix))
    normalizer += _int(4, int(vocabulary.trims_spaces)) + _int(5, 1)
    return body + _message(2, trainer + _int(43, -1)) + _message(3, normalizer)


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


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative ones as 64 bits
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])


def _field(number: int, kind: int) -> bytes:
    return _varint(number << 3 | kind)


def _int(number: int, value: int) -> bytes:
    return _field(number, _VARINT) + _varint(value)


def _message(number: int, body: bytes) -> bytes:
    return _field(number, _BYTES) + _varint(len(body)) + body


def _text(number: int, text: str) -> bytes:
    return _message(number, text.encode())

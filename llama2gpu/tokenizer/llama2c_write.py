"""Writing llama2.c's tokenizer.bin; its layout: `tokenizer.llama2c`."""

import struct

from llama2gpu.tokenizer.export_parts import refuse
from llama2gpu.tokenizer.llama2c import BOS, EOS, PIECES, UNMERGED
from llama2gpu.tokenizer.sentencepiece import SPACE
from llama2gpu.vocabulary import MergedVocabulary, PieceType, ScoredVocabulary


def tokenizer_bin(vocabulary: ScoredVocabulary | MergedVocabulary, rows: int) -> bytes:
    """The file for a model with `rows` ids; those without a piece get one that never comes up.

    Raises `TokenizerError` for what llama2.c's programs would read otherwise: they know scored
    pieces, BOS 1, EOS 2, bytes from 3 on, and a space before a text.
    """
    if isinstance(vocabulary, MergedVocabulary):
        refuse("llama2.c has no byte-level BPE, as Llama 3's is")
    _check(vocabulary)
    texts = [piece.replace(SPACE, " ").encode() for piece in vocabulary.pieces]
    texts[BOS], texts[EOS] = b"\n<s>\n", b"\n</s>\n"
    texts += [b"<pad%d>" % n for n in range(len(texts), rows)]
    data = bytearray(struct.pack("<I", max(map(len, texts))))
    for id, text in enumerate(texts):
        data += struct.pack("<fI", _score(vocabulary, id), len(text)) + text
    return bytes(data)


def _check(vocabulary: ScoredVocabulary) -> None:
    pieces = vocabulary.pieces
    bytes_alone = {*vocabulary.types[3:PIECES]} == {PieceType.BYTE}
    if not bytes_alone or list(pieces[3:PIECES]) != [f"<0x{byte:02X}>" for byte in range(256)]:
        refuse("llama2.c's programs want the 256 bytes as tokens 3 to 258")
    if vocabulary.bos_id != BOS or EOS not in vocabulary.eos_ids:
        refuse(f"llama2.c's programs begin a text with token {BOS} and end it with {EOS}")
    if not vocabulary.space_prefix or vocabulary.trims_spaces or not vocabulary.adds_bos:
        refuse("llama2.c's programs put BOS and a space before a text, and keep all others")
    if PieceType.USER_DEFINED in vocabulary.types:
        named = pieces[list(vocabulary.types).index(PieceType.USER_DEFINED)]
        refuse(f"llama2.c's programs would split {named[:40]!r}, which is to stay whole")


def _score(vocabulary: ScoredVocabulary, id: int) -> float:
    """A piece that no text may become has a score at which nothing merges."""
    if id < PIECES:
        return vocabulary.scores[id]
    if id < len(vocabulary.pieces) and vocabulary.types[id] == PieceType.NORMAL:
        return vocabulary.scores[id]
    return UNMERGED

"""SentencePiece's tokenizer.model, through the sentencepiece library."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama2gpu.tokenizer.base import Token, Tokenizer
from llama2gpu.tokenizer.files import check_vocab, damaged, quiet, read_object

SPACE = "▁"


class SentencePiece(Tokenizer):
    """`tokenizer.model` of Llama 1 and 2; `processor` is a `SentencePieceProcessor`."""

    format = "SentencePiece"

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.vocab = processor.get_piece_size()
        self.bos_id = processor.bos_id() if processor.bos_id() >= 0 else None
        self.eos_ids = (processor.eos_id(),) if processor.eos_id() >= 0 else ()
        self.leading = _leading(processor)
        self._tokens = [_read_token(processor, id) for id in range(self.vocab)]

    def _encode(self, text: str) -> list[int]:
        return list(self.processor.encode(text))

    def _token(self, id: int) -> Token:
        return self._tokens[id]

    def _controls(self) -> Mapping[str, int]:
        tokens = enumerate(self._tokens)
        return {token.text.decode(): id for id, token in tokens if token.control}


def _read_token(processor: Any, id: int) -> Token:
    piece: str = processor.id_to_piece(id)
    if processor.is_control(id):
        return Token(piece.encode(), control=True)
    if processor.is_byte(id):
        return Token(bytes([int(piece[3:5], 16)]))
    if processor.is_unknown(id):
        return Token(processor.decode([id]).encode())
    return Token(piece.replace(SPACE, " ").encode())


def _leading(processor: Any) -> int:
    """Spaces that the model's own decoder drops at the start: none, the dummy prefix, or all."""
    mark = processor.piece_to_id(SPACE)
    if processor.is_unknown(mark):
        return 1
    kept = len(processor.decode([mark, mark]))
    return {2: 0, 1: 1}.get(kept, sys.maxsize)


def read_sentencepiece(path: Path, data: bytes, vocab: int | None) -> SentencePiece:
    """Reads a SentencePiece model; raises `TokenizerError` where the library refuses it.

    Whether texts start with BOS is not told in it, but in tokenizer_config.json beside it.
    """
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    try:
        with quiet():
            processor.LoadFromSerializedProto(data)
            tokenizer = SentencePiece(processor)
    except (RuntimeError, ValueError, IndexError) as error:
        raise damaged(path, str(error).removeprefix("INTERNAL: ")) from None
    check_vocab(path, tokenizer.vocab, vocab)
    told = read_object(path.parent / "tokenizer_config.json")
    tokenizer.adds_bos = told.get("add_bos_token") is not False
    return tokenizer

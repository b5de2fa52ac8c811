"""ggjt version 1, which llama.go and early llama.cpp read: a vocabulary, then named tensors.

Nine int32 (magic, version, vocab, dim, multiple_of, heads, layers, rotated columns, type), then of
each token int32 length, bytes, float32 score. Of each tensor int32 dimensions, length of the name
and type, then the dimensions from the last to the first, the name, and the data at the next
multiple of 32 bytes. Names and RoPE order are Meta's; heads are not grouped.
Source: https://github.com/gotzmann/llama.go, `pkg/llama/llama.go`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from llama2gpu.checkpoints.files import tokenizers_beside
from llama2gpu.checkpoints.flat import flat_config
from llama2gpu.checkpoints.meta import NAMES
from llama2gpu.checkpoints.records import Cursor, read_name, read_records
from llama2gpu.checkpoints.stored import Stored, StoredCheckpoint, select
from llama2gpu.config import LIMITS, Config
from llama2gpu.errors import CheckpointError, TokenizerError, UnsupportedModelError
from llama2gpu.vocabulary import PieceType, ScoredVocabulary

MAGIC = b"tjgg"
#: The context of the first Llama, which the format does not tell.
_CONTEXT = 2048
_ALIGNMENT = 32
_TYPES = {0: "float32", 1: "float16"}
_LONGEST_TOKEN, _MOST_TOKENS = 1 << 16, 1 << 20
#: What stands before the 256 bytes.
_FIRST = {
    "<unk>": PieceType.UNKNOWN,
    "<s>": PieceType.CONTROL,
    "</s>": PieceType.CONTROL,
    **{f"<0x{byte:02X}>": PieceType.BYTE for byte in range(256)},
}


def open_ggjt(path: Path) -> StoredCheckpoint:
    """Opens a file; theta is 10000 and norm_eps 1e-5, which the format does not tell.

    Raises `CheckpointError` for what is damaged, `UnsupportedModelError` for later versions and
    quantized tensors.
    """
    cursor = Cursor(path)
    config = _header(cursor)
    start = cursor.at
    for _ in _tokens(cursor, config.vocab):
        pass
    found = read_records(cursor, config.layers, _record)
    return _Ggjt(path, config, select(path, config, found, NAMES), start)


class _Ggjt(StoredCheckpoint):
    """A file whose vocabulary begins at byte `start`."""

    def __init__(self, path: Path, config: Config, stored: dict[str, Stored], start: int) -> None:
        super().__init__("ggjt v1", path, config, stored)
        self.tokenizer_files = tokenizers_beside(path, config.vocab)
        self._start = start

    def embedded_tokenizer(self) -> ScoredVocabulary:
        """The vocabulary, which is SentencePiece's as the first Llamas have it."""
        cursor = Cursor(self.path)
        cursor.skip(self._start)
        texts, scores = zip(*_tokens(cursor, self.config.vocab), strict=True)
        if texts[3 : len(_FIRST)] != tuple(bytes([byte]) for byte in range(256)):
            self._refuse("its tokens 3 to 258 are not the 256 bytes")
        try:
            others = dict(
                (text.decode().replace(" ", "▁"), PieceType.NORMAL)
                if text
                else (f"<control_{id}>", PieceType.CONTROL)
                for id, text in enumerate(texts[len(_FIRST) :], len(_FIRST))
            )
        except UnicodeDecodeError:
            self._refuse("a token is no UTF-8")
        pieces = _FIRST | others
        if len(pieces) < len(texts):
            self._refuse(f"{len(texts) - len(pieces)} of its tokens are there twice")
        return ScoredVocabulary([*pieces], scores, [*pieces.values()])

    def _refuse(self, what: str) -> NoReturn:
        raise TokenizerError(
            f"the tokenizer in {self.path} can't be read: {what}; give one with --tokenizer PATH"
        )


def _header(cursor: Cursor) -> Config:
    _, version, vocab, dim, multiple, heads, layers, rotated, _ = cursor.unpack("<9i")
    if version != 1:
        raise UnsupportedModelError(
            f"{cursor.path} is ggjt version {version}, of which only 1 is supported: "
            "convert it to GGUF"
        )
    if not 0 < multiple <= LIMITS["hidden"]:
        raise CheckpointError(
            f"{cursor.path}: multiple_of is {multiple}: it is damaged, download it again"
        )
    config = flat_config(
        cursor.path,
        dim=dim,
        hidden=(8 * dim // 3 + multiple - 1) // multiple * multiple,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        vocab=vocab,
        context=_CONTEXT,
    )
    if rotated != config.head_dim:
        raise CheckpointError(
            f"{cursor.path}: RoPE rotates {rotated} columns of {config.head_dim}: it is damaged, "
            "download it again"
        )
    return config


def _tokens(cursor: Cursor, count: int) -> Iterator[tuple[bytes, float]]:
    """Bytes and score of each token."""
    if count > _MOST_TOKENS:
        raise CheckpointError(
            f"{cursor.path} claims {count} tokens: it is damaged, download it again"
        )
    for _ in range(count):
        (length,) = cursor.unpack("<i")
        if length > _LONGEST_TOKEN:
            raise CheckpointError(
                f"{cursor.path} has a token of {length} bytes: it is damaged, download it again"
            )
        yield cursor.take(length), cursor.unpack("<f")[0]


def _record(cursor: Cursor) -> Stored:
    dimensions, length, kind = cursor.unpack("<3i")
    shape = cursor.unpack(f"<{min(max(dimensions, 0), 3)}i")[::-1]
    name = read_name(cursor, length)
    if kind not in _TYPES:
        raise UnsupportedModelError(
            f"{cursor.path}: {name} is of ggml's type {kind}: give the model in float32 or "
            "float16, or as GGUF"
        )
    cursor.skip(-cursor.at % _ALIGNMENT)
    return cursor.tensor(name, shape, _TYPES[kind])

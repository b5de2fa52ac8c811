"""llama2-np's `.lmw` files, whose three layouts share a magic number and a version.

uint32 magic, int32 version 1, then seven int32 (dim, layers, heads, key-value heads, multiple_of,
vocab, context). Layout A goes on with float32 norm_eps, B and C with theta and norm_eps; C has the
model's name before the seven, and after the floats the length and the bytes of a tokenizer's file
and 1 to 4 zeros. Then tensors until the end: name, uint32 dimensions, their sizes, float32 data; in
C uint32 whether the data are stored by columns and uint32 type stand before the data. Texts are
padded with 1 to 4 spaces to a multiple of 4, their length before them. Names and RoPE order are
Meta's. Source: llama2-np, `convert.py` and `read_lumi.py`.
"""

import struct
from functools import partial
from pathlib import Path
from typing import NamedTuple

from llama2gpu.checkpoints.fields import config_from
from llama2gpu.checkpoints.files import tokenizers_beside
from llama2gpu.checkpoints.meta import NAMES
from llama2gpu.checkpoints.records import Cursor, read_name, read_records
from llama2gpu.checkpoints.stored import Stored, StoredCheckpoint, rows_of, select
from llama2gpu.config import Config
from llama2gpu.errors import CheckpointError, UnsupportedModelError
from llama2gpu.vocabulary import TokenizerFile

MAGIC = struct.pack("<I", 0x696D756C)
_TYPES = {117: "bfloat16", 132: "float32"}
_LONGEST_TOKENIZER = 64 << 20


class _Header(NamedTuple):
    """layout: A, B or C. sizes: the seven. tokenizer: where its file stands, in C alone."""

    layout: str
    sizes: tuple[int, ...]
    theta: float
    norm_eps: float
    tokenizer: slice = slice(0, 0)


def open_lmw(path: Path) -> StoredCheckpoint:
    """Opens a file of any of the three layouts; the width of the feed-forward is that of its w1.

    Layout A does not tell theta: 10000 is assumed. Raises `CheckpointError` for what is damaged.
    """
    cursor = Cursor(path)
    header = _header(cursor)
    read_one = partial(_record, typed=header.layout == "C")
    found = read_records(cursor, header.sizes[1], read_one)
    config = _config(path, header, found)
    return _Lmw(path, config, select(path, config, found, NAMES), header)


class _Lmw(StoredCheckpoint):
    """A file that may hold a tokenizer's."""

    def __init__(
        self, path: Path, config: Config, stored: dict[str, Stored], header: _Header
    ) -> None:
        super().__init__(f"lmw {header.layout}", path, config, stored)
        self.tokenizer_files = tokenizers_beside(path, config.vocab)
        self._tokenizer = header.tokenizer

    def embedded_tokenizer(self) -> TokenizerFile | None:
        """The tokenizer's file within layout C."""
        if self._tokenizer.stop == 0:
            return None
        cursor = Cursor(self.path)
        cursor.skip(self._tokenizer.start)
        return TokenizerFile(cursor.take(self._tokenizer.stop - self._tokenizer.start))


def _header(cursor: Cursor) -> _Header:
    _, version = cursor.unpack("<4si")
    if version != 1:
        raise UnsupportedModelError(
            f"{cursor.path} is lmw version {version}, of which only 1 is known: convert it again"
        )
    named = _at_text(cursor)
    if named:
        cursor.skip(*cursor.unpack("<I"))
    sizes = cursor.unpack("<7i")
    (number,) = cursor.unpack("<f")
    if not named and _at_text(cursor):
        return _Header("A", sizes, 10000.0, number)
    (norm_eps,) = cursor.unpack("<f")
    if not named:
        return _Header("B", sizes, number, norm_eps)
    (length,) = cursor.unpack("<I")
    tokenizer = slice(cursor.at, cursor.at + length)
    cursor.skip(length)
    if length > _LONGEST_TOKENIZER or any(cursor.take(4 - length % 4)):
        raise CheckpointError(
            f"{cursor.path}: its tokenizer has not the {length} bytes that it claims: it is "
            "damaged, download it again"
        )
    return _Header("C", sizes, number, norm_eps, tokenizer if length else slice(0, 0))


def _at_text(cursor: Cursor) -> bool:
    """Whether a padded text stands here, which no sizes and floats look like."""
    here = cursor.at
    try:
        (length,) = cursor.unpack("<I")
        return length % 4 == 0 and read_name(cursor, length).endswith(" ")
    except CheckpointError:
        return False
    finally:
        cursor.at = here


def _config(path: Path, header: _Header, found: dict[str, Stored]) -> Config:
    dim, layers, heads, kv_heads, _, vocab, context = header.sizes
    return config_from(
        path,
        dim=dim,
        hidden=rows_of(path, found, NAMES("layers.0.w1")),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=dim // max(heads, 1),
        vocab=vocab,
        context=context,
        rope_theta=header.theta,
        norm_eps=header.norm_eps,
    )


def _record(cursor: Cursor, *, typed: bool) -> Stored:
    (length,) = cursor.unpack("<I")
    name = read_name(cursor, length).rstrip(" ")
    (dimensions,) = cursor.unpack("<I")
    shape = cursor.unpack(f"<{min(dimensions, 3)}I")
    transposed, kind = cursor.unpack("<2I") if typed else (0, 132)
    if kind not in _TYPES or transposed > 1:
        raise UnsupportedModelError(
            f"{cursor.path}: {name} is of type {kind}, order {transposed}: convert it again, to "
            "float32 or bfloat16"
        )
    return cursor.tensor(name, shape, _TYPES[kind], transposed=bool(transposed))

"""llama2.c's own files: v0 without a magic number, v1 in float32, v2 in int8.

Layouts: https://github.com/karpathy/llama2.c, `export.py` (writer) and `run.c` (reader).
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from llama2gpu.checkpoints.base import LAYER_MATRICES, LAYER_NORMS, tensor_shapes
from llama2gpu.checkpoints.fields import config_from
from llama2gpu.checkpoints.files import file_size, map_file, present, read_start, typed
from llama2gpu.checkpoints.stored import Stored, StoredCheckpoint
from llama2gpu.config import Config
from llama2gpu.errors import CheckpointError, UnsupportedModelError

MAGIC = struct.pack("<I", 0x616B3432)
_PER_LAYER = (*LAYER_MATRICES, *LAYER_NORMS)
_START = {0: 28, 1: 256, 2: 256}
_ATTENTION, _FFN = ("wq", "wk", "wv", "wo"), ("w1", "w2", "w3")
_LEGACY_ORDER = ("embed", "attention_norm", *_ATTENTION, "ffn_norm", *_FFN, "norm", "tables")
_ORDER = ("attention_norm", "ffn_norm", "norm", "embed", *_ATTENTION, *_FFN)


@dataclass(frozen=True)
class Header:
    """What the first bytes of a file say; group is that of version 2."""

    version: int
    config: Config
    group: int = 0


def open_llama2c(path: Path) -> StoredCheckpoint:
    """Opens a file of any of the three versions; int8 is dequantized to float32 as it is read.

    No version stores rope_theta or norm_eps: 10000 and 1e-5 are assumed.
    Raises `CheckpointError` unless the header predicts the file's size to the byte.
    """
    size = file_size(path)
    header = _header(path)
    expected = predicted_size(header)
    if size != expected:
        raise CheckpointError(
            f"{path} has {size} bytes, but its llama2.c header asks for {expected}: "
            "download it again, or it is another format"
        )
    stored = _layout(header, map_file(path, size))
    checkpoint = StoredCheckpoint(f"llama2.c v{header.version}", path, header.config, stored)
    checkpoint.bos_id, checkpoint.stop_ids, checkpoint.default_prompt = 1, (1, 2), ""
    own = f"tok{header.config.vocab}.bin"
    names = (own, "tokenizer.bin", "tokenizer.model", "tokenizer.json")
    checkpoint.tokenizer_files = present(path.parent, *names)
    return checkpoint


def predicted_size(header: Header) -> int:
    """Bytes of a whole file with this header; exact, however large."""
    total = sum(count * _nbytes(header, shape) for _, count, shape in _runs(header))
    return _START[header.version] + total


def _header(path: Path) -> Header:
    start = read_start(path, 41)
    if not start.startswith(MAGIC):
        return _legacy_header(path, start)
    if len(start) < 41:
        raise CheckpointError(f"{path} ends within its header: download it again")
    version, *sizes, shared = struct.unpack_from("<i7iB", start, 4)
    (group,) = struct.unpack_from("<i", start, 37)
    if version not in (1, 2):
        raise UnsupportedModelError(f"{path} is llama2.c version {version}: export it as 1 or 2")
    if shared > 1:
        raise CheckpointError(
            f"{path}: the flag of a shared classifier is {shared}: download it again"
        )
    config = _config(path, sizes, tied=bool(shared))
    return Header(version, config, _checked_group(path, config, group) if version == 2 else 0)


def _legacy_header(path: Path, start: bytes) -> Header:
    if len(start) < 28:
        raise CheckpointError(f"{path} is too short for a checkpoint: download it again")
    *sizes, vocab, context = struct.unpack_from("<7i", start)
    return Header(0, _config(path, [*sizes, abs(vocab), context], tied=vocab > 0))


def header_bytes(header: Header) -> bytes:
    """The first bytes of a file: what `open_llama2c` reads."""
    c = header.config
    sizes = [c.dim, c.hidden, c.layers, c.heads, c.kv_heads, c.vocab, c.context]
    if header.version == 0:
        sizes[5] *= 1 if c.tied else -1
        return struct.pack("<7i", *sizes)
    start = MAGIC + struct.pack("<i7iB", header.version, *sizes, c.tied)
    if header.version == 2:
        start += struct.pack("<i", header.group)
    return start.ljust(_START[header.version], b"\0")


def _config(path: Path, sizes: list[int], *, tied: bool) -> Config:
    dim, hidden, layers, heads, kv_heads, vocab, context = sizes
    if heads < 1 or dim % heads:
        raise CheckpointError(
            f"{path}: dim {dim} is not a multiple of {heads} heads: it is damaged, "
            "or another format"
        )
    return config_from(
        path,
        dim=dim,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=dim // heads,
        vocab=vocab,
        context=context,
        tied=tied,
    )


def _checked_group(path: Path, config: Config, group: int) -> int:
    for name, shape in tensor_shapes(replace(config, layers=1)):
        if group < 1 or (len(shape) == 2 and math.prod(shape) % group):
            raise CheckpointError(
                f"{path}: groups of {group} do not divide {name}: download it again"
            )
    return group


def _runs(header: Header) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    """What follows the header: kind, how many in a row, shape of each."""
    config = header.config
    order = _ORDER if header.version else _LEGACY_ORDER
    shapes = dict(tensor_shapes(replace(config, layers=1)))
    for kind in (*order, *(() if config.tied else ("output",))):
        if kind == "tables":
            yield kind, 1, (2, config.context, config.head_dim // 2)
        elif kind in shapes:
            yield kind, 1, shapes[kind]
        else:
            yield kind, config.layers, shapes[f"layers.0.{kind}"]


def _nbytes(header: Header, shape: tuple[int, ...]) -> int:
    count = math.prod(shape)
    if header.version == 2 and len(shape) == 2:
        return count + 4 * (count // header.group)
    return 4 * count


def layout(header: Header) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors that follow the header, in the order of the file; "tables" are those of RoPE."""
    for kind, count, shape in _runs(header):
        for n in range(count):
            yield f"layers.{n}.{kind}" if kind in _PER_LAYER else kind, shape


def _layout(header: Header, data: torch.Tensor) -> dict[str, Stored]:
    stored = {}
    offset = _START[header.version]
    for name, shape in layout(header):
        nbytes = _nbytes(header, shape)
        stored[name] = _stored(header, name, shape, data[offset : offset + nbytes])
        offset += nbytes
    return {name: stored[name] for name, _ in tensor_shapes(header.config)}


def _stored(header: Header, name: str, shape: tuple[int, ...], span: torch.Tensor) -> Stored:
    if header.version == 2 and len(shape) == 2:
        load = partial(_dequantize, span, shape, header.group)
        return Stored(name, shape, "int8", span.nbytes, load)
    return Stored(name, shape, "float32", span.nbytes, partial(_view, span, shape))


def _view(span: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    return typed(span, torch.float32).view(shape)


def _dequantize(span: torch.Tensor, shape: tuple[int, ...], group: int) -> torch.Tensor:
    """Q8_0 whose groups run over the flat tensor, so that they may straddle rows."""
    count = math.prod(shape)
    values = span[:count].view(torch.int8).view(-1, group).to(torch.float32)
    return values.mul_(typed(span[count:], torch.float32)[:, None]).view(shape)

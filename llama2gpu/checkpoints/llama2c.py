"""llama2.c's own files: v0 without a magic number, v1 in float32, v2 in int8.

Layouts: https://github.com/karpathy/llama2.c, `export.py` (writer) and `run.c` (reader).
"""

import struct
from pathlib import Path

from llama2gpu.checkpoints.files import read_start
from llama2gpu.checkpoints.flat import Flat, flat_config, open_flat
from llama2gpu.checkpoints.stored import StoredCheckpoint
from llama2gpu.config import Config
from llama2gpu.errors import CheckpointError, UnsupportedModelError

MAGIC = struct.pack("<I", 0x616B3432)
_STARTS = {0: 28, 1: 256, 2: 256}
_ATTENTION, _FFN = ("wq", "wk", "wv", "wo"), ("w1", "w2", "w3")
_LEGACY_ORDER = ("embed", "attention_norm", *_ATTENTION, "ffn_norm", *_FFN, "norm", "tables")
_ORDER = ("attention_norm", "ffn_norm", "norm", "embed", *_ATTENTION, *_FFN)


def open_llama2c(path: Path) -> StoredCheckpoint:
    """Opens a file of any of the three versions.

    No version stores rope_theta or norm_eps: 10000 and 1e-5 are assumed.
    Raises `CheckpointError` unless the header predicts the file's size to the byte.
    """
    version, flat = _header(path)
    checkpoint = open_flat(path, f"llama2.c v{version}", flat)
    checkpoint.bos_id, checkpoint.stop_ids, checkpoint.default_prompt = 1, (1, 2), ""
    return checkpoint


def flat_of(version: int, config: Config, group: int = 0) -> Flat:
    """What a file of a version holds; group: values of a scale in version 2."""
    order = _ORDER if version else _LEGACY_ORDER
    order = order if config.tied else (*order, "output")
    if version == 2:
        return Flat(config, _STARTS[version], order, bits=8, group=group)
    return Flat(config, _STARTS[version], order)


def header_bytes(version: int, flat: Flat) -> bytes:
    """The first bytes of a file, as `open_llama2c` reads them."""
    c = flat.config
    sizes = [c.dim, c.hidden, c.layers, c.heads, c.kv_heads, c.vocab, c.context]
    if version == 0:
        sizes[5] *= 1 if c.tied else -1
        return struct.pack("<7i", *sizes)
    start = MAGIC + struct.pack("<i7iB", version, *sizes, c.tied)
    if version == 2:
        start += struct.pack("<i", flat.group)
    return start.ljust(flat.start, b"\0")


def _header(path: Path) -> tuple[int, Flat]:
    start = read_start(path, 41)
    if not start.startswith(MAGIC):
        return 0, _legacy(path, start)
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
    return version, flat_of(version, config, group)


def _legacy(path: Path, start: bytes) -> Flat:
    if len(start) < 28:
        raise CheckpointError(f"{path} is too short for a checkpoint: download it again")
    *sizes, vocab, context = struct.unpack_from("<7i", start)
    config = _config(path, [*sizes, abs(vocab), context], tied=vocab > 0)
    return flat_of(0, config)


def _config(path: Path, sizes: list[int], *, tied: bool) -> Config:
    names = ("dim", "hidden", "layers", "heads", "kv_heads", "vocab", "context")
    return flat_config(path, **dict(zip(names, sizes, strict=True)), tied=tied)

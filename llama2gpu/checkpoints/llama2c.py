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
_START = 256
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
    order = _ORDER if shared else (*_ORDER, "output")
    if version == 1:
        return version, Flat(config, _START, order)
    return version, Flat(config, _START, order, bits=8, group=group)


def _legacy(path: Path, start: bytes) -> Flat:
    if len(start) < 28:
        raise CheckpointError(f"{path} is too short for a checkpoint: download it again")
    *sizes, vocab, context = struct.unpack_from("<7i", start)
    config = _config(path, [*sizes, abs(vocab), context], tied=vocab > 0)
    return Flat(config, 28, _LEGACY_ORDER if config.tied else (*_LEGACY_ORDER, "output"))


def _config(path: Path, sizes: list[int], *, tied: bool) -> Config:
    names = ("dim", "hidden", "layers", "heads", "kv_heads", "vocab", "context")
    return flat_config(path, **dict(zip(names, sizes, strict=True)), tied=tied)

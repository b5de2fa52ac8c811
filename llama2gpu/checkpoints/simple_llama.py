"""simple-llama's files: v3 in float32, v4 in integers of 8 or 4 bits.

Exported from Meta's weights: heads are not grouped, and q and k are in adjacent-pair RoPE order.
Layouts: https://github.com/ziereis/simple-llama, `export.py`, `lib/quantize.c` (writers) and
`lib/llama.c` (reader).
"""

import struct
from pathlib import Path

from llama2gpu.checkpoints.base import LAYER_MATRICES, LAYER_NORMS
from llama2gpu.checkpoints.files import read_start
from llama2gpu.checkpoints.flat import Flat, flat_config, open_flat
from llama2gpu.checkpoints.stored import StoredCheckpoint
from llama2gpu.errors import CheckpointError, UnsupportedModelError

MAGIC = struct.pack("<I", 0x7FDD7F7F)
_START = 256
_ORDER = ("norm", "embed", "output", *LAYER_NORMS, *LAYER_MATRICES)
_QUANTIZED_ORDER = ("norm", *LAYER_NORMS, "embed", "output", *LAYER_MATRICES)


def open_simple_llama(path: Path) -> StoredCheckpoint:
    """Opens a file of version 3 or 4.

    Neither stores rope_theta or norm_eps: 10000 and 1e-5 are assumed.
    Raises `CheckpointError` unless the header predicts the file's size to the byte,
    `UnsupportedModelError` for other versions.
    """
    start = read_start(path, 40)
    if len(start) < 40:
        raise CheckpointError(f"{path} ends within its header: download it again")
    version, dim, hidden, heads, layers, vocab, context, group, bits = struct.unpack_from(
        "<9i", start, 4
    )
    if version not in (3, 4):
        raise UnsupportedModelError(
            f"{path} is simple-llama version {version}: export it as 3, or quantize it as 4"
        )
    if version == 4 and bits not in (4, 8):
        raise UnsupportedModelError(f"{path} has values of {bits} bits: quantize it to 8 or 4")
    config = flat_config(
        path, dim=dim, hidden=hidden, layers=layers, heads=heads, kv_heads=heads, vocab=vocab,
        context=context,
    )  # fmt: skip
    flat = Flat(config, _START, _ORDER)
    if version == 4:
        flat = Flat(config, _START, _QUANTIZED_ORDER, bits, group, scales_last=True)
    return open_flat(path, f"simple-llama v{version}", flat)

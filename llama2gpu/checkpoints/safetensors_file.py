"""Safetensors files: headers read and checked by the `safetensors` library, data mapped by it."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from llama2gpu.checkpoints.files import HEADER_LIMIT, blamed_on, file_size, read_start
from llama2gpu.checkpoints.stored import Stored, header
from llama2gpu.errors import CheckpointError

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "I32": "int32"}


def open_safetensors(path: Path) -> dict[str, Stored]:
    """The tensors of one file, mapped. Raises `CheckpointError` for a damaged one."""
    size = file_size(path)
    length = int.from_bytes(read_start(path, 8), "little")
    if length > min(size, HEADER_LIMIT):
        raise CheckpointError(
            f"{path}: its header claims {length} bytes of {size}: it is damaged, download it again"
        )
    with blamed_on(path, "it is damaged or cut short; download it again"):
        file: Any = safe_open(path, framework="pt")
        return {name: _stored(file, name) for name in file.keys()}  # noqa: SIM118


def _stored(file: Any, name: str) -> Stored:
    part = file.get_slice(name)
    dtype = str(part.get_dtype())
    load = partial(_load, file, name)
    return header(name, tuple(part.get_shape()), _DTYPES.get(dtype, dtype), load)


def _load(file: Any, name: str) -> torch.Tensor:
    tensor: torch.Tensor = file.get_tensor(name)
    return tensor

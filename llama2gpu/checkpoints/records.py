"""Files that list named tensors one after the other, in any order: walked once, never past the end.

Nothing but what stands between the tensors is read; those are spans of the mapped file.
"""

import math
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llama2gpu.checkpoints.files import file_size, map_file, typed
from llama2gpu.checkpoints.stored import FLOATS, Stored
from llama2gpu.config import LIMITS
from llama2gpu.errors import CheckpointError

#: Bytes of a name; Meta's longest has about 40.
_LONGEST_NAME = 256
#: Tensors of a layer, with tables of RoPE that old files repeat there.
_A_LAYER = 10
_TOP = 8


class Cursor:
    """A place in a mapped file. Every step raises `CheckpointError` where the file ends before."""

    def __init__(self, path: Path) -> None:
        self.path, self.at = path, 0
        self._data = map_file(path, file_size(path))
        self._bytes = self._data.numpy().data

    @property
    def left(self) -> int:
        """Bytes from here to the end."""
        return len(self._bytes) - self.at

    def unpack(self, format: str) -> tuple[Any, ...]:
        """Values in a format of `struct`."""
        return struct.unpack(format, self.take(struct.calcsize(format)))

    def take(self, count: int) -> bytes:
        """So many bytes."""
        self.skip(count)
        return bytes(self._bytes[self.at - count : self.at])

    def span(self, count: int) -> torch.Tensor:
        """So many bytes of the map, uint8."""
        self.skip(count)
        return self._data[self.at - count : self.at]

    def skip(self, count: int) -> None:
        """Over so many bytes, at least 0."""
        if not 0 <= count <= self.left:
            raise CheckpointError(
                f"{self.path} ends within what it claims to hold: it is damaged or cut short, "
                "download it again"
            )
        self.at += count

    def tensor(
        self, name: str, shape: tuple[int, ...], dtype: str, *, transposed: bool = False
    ) -> Stored:
        """The tensor whose data begins here; `transposed` where it is stored by columns.

        Raises `CheckpointError` unless it is a vector or a matrix of one element at least.
        """
        if len(shape) not in (1, 2) or min(shape) < 1 or (transposed and len(shape) == 1):
            raise CheckpointError(
                f"{self.path}: {name} is {list(shape)}: it is damaged, download it again"
            )
        span = self.span(math.prod(shape) * FLOATS[dtype].itemsize)
        load = partial(_view, span, FLOATS[dtype], shape)
        if not transposed:
            return Stored(name, shape, dtype, span.nbytes, load)
        load = partial(_turned, span, FLOATS[dtype], shape)
        fill = partial(_fill, load)
        return Stored(name, shape, dtype, span.nbytes, lambda: load().contiguous(), fill=fill)


def _view(span: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    return typed(span, dtype).view(shape)


def _turned(span: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    return typed(span, dtype).view(shape[::-1]).T


def _fill(load: Callable[[], torch.Tensor], out: torch.Tensor) -> None:
    out.copy_(load())


def read_records(
    cursor: Cursor, layers: int, read_one: Callable[[Cursor], Stored]
) -> dict[str, Stored]:
    """The tensors from here to the end of the file, by the names that it gives them.

    Raises `CheckpointError` for a name that comes twice, and for more tensors than so many layers
    can have.
    """
    found: dict[str, Stored] = {}
    most = _TOP + _A_LAYER * min(max(layers, 0), LIMITS["layers"])
    while cursor.left:
        tensor = read_one(cursor)
        if tensor.name in found or len(found) == most:
            what = f"{tensor.name} twice" if tensor.name in found else f"more than {most} tensors"
            raise CheckpointError(f"{cursor.path} holds {what}: it is damaged, download it again")
        found[tensor.name] = tensor
    return found


def read_name(cursor: Cursor, length: int) -> str:
    """A tensor's name of so many bytes, printable ASCII."""
    raw = cursor.take(length) if 0 < length <= _LONGEST_NAME else b""
    if not raw.isascii() or not raw.decode().isprintable() or not raw:
        raise CheckpointError(
            f"{cursor.path} has no tensor's name at byte {cursor.at - len(raw)}: it is damaged, "
            "download it again"
        )
    return raw.decode()

"""The header of a GGUF file: values by key, then the name, shape, type and place of each tensor.

Read here, since the `gguf` package's reader takes seconds and a gigabyte for a large vocabulary,
and believes every count. What is read depends on the file's size and on the limits below, never on
what it claims. Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import torch

from llama2gpu.checkpoints.files import blamed_on, file_size, map_file, read_start
from llama2gpu.checkpoints.gguf_names import MAGIC, General
from llama2gpu.errors import CheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

#: Keys, and tensors, of a file; the largest Llama that is believed has 37,000 tensors.
_ENTRIES = 1 << 16
#: Bytes of a key or name, of all texts that are values, and how many texts all lists hold.
_NAME, _TEXT, _TEXTS = 1 << 16, 16 << 20, 1 << 22
_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
#: Types of values, by number: numpy's letters for them.
_NUMBERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_DAMAGED = "it is damaged or cut short; download it again"


@dataclass(frozen=True)
class Array:
    """A list of values, still as bytes. kind: numpy's letter of its numbers, or "s" for texts."""

    kind: str
    count: int
    data: memoryview

    def texts(self, limit: int) -> list[str]:
        """The texts; `ValueError` where there are other values, or more than `limit` of them."""
        if self.kind != "s" or self.count > limit:
            raise ValueError(
                f"{self.count} values of type {self.kind!r}, not at most {limit} texts"
            )
        found, at = [], 0
        for _ in range(self.count):
            (size,) = _LENGTH.unpack_from(self.data, at)
            at += 8 + size
            found.append(str(self.data[at - size : at], "utf-8"))
        return found

    def numbers(self) -> list[float]:
        """The numbers; `ValueError` where these are texts."""
        if self.kind == "s":
            raise ValueError("texts, not numbers")
        numbers = np.frombuffer(self.data, np.dtype(self.kind).newbyteorder("<"))
        return [*map(float, numbers.tolist())]


Value = bool | int | float | str | Array
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class Blocks:
    """A tensor: `shape` with rows first, its `kind` of blocks, and all of its bytes, mapped."""

    name: str
    shape: tuple[int, ...]
    kind: "GGMLQuantizationType"
    data: torch.Tensor


@dataclass(frozen=True)
class Header:
    """What a file holds: values by key and tensors by name; `parts` where these are of several."""

    path: Path
    version: int
    values: Mapping[str, Value]
    tensors: Mapping[str, Blocks]
    parts: tuple[Path, ...] = ()


def read_header(path: Path) -> Header:
    """Reads a file's header; every tensor is checked to lie within the file.

    Raises `CheckpointError` for what is damaged, `UnsupportedModelError` for other versions, byte
    orders and types of tensors than are known.
    """
    version = _version(path)
    data = map_file(path, file_size(path))
    with blamed_on(path, _DAMAGED):
        cursor = _Cursor(path, data)
        tensor_count, value_count = cursor.number("Q"), cursor.number("Q")
        for count, what in ((tensor_count, "tensors"), (value_count, "values")):
            if count > _ENTRIES:
                cursor.refuse(f"its header claims {count} {what}")
        values: dict[str, Value] = {}
        for _ in range(int(value_count)):
            key = cursor.text(_NAME)
            if key in values:
                cursor.refuse(f"it holds {key[:80]!r} twice")
            values[key] = cursor.value(int(cursor.number("I")))
        tensors = _tensors(cursor, int(tensor_count), _alignment(cursor, values), data)
    return Header(path, version, values, tensors)


def _version(path: Path) -> int:
    start = read_start(path, 8)
    if len(start) < 8 or start[:4] != MAGIC:
        raise CheckpointError(f"{path} is no GGUF file, or ends within its header")
    (version,) = struct.unpack("<I", start[4:])
    if version and not version & 0xFFFF:
        raise UnsupportedModelError(
            f"{path} is big-endian: convert it with gguf-convert-endian, which comes with gguf"
        )
    if version not in (2, 3):
        raise UnsupportedModelError(
            f"{path} is GGUF version {version}, but 2 and 3 are supported: "
            "convert the model again with llama.cpp"
        )
    return int(version)


def _alignment(cursor: "_Cursor", values: Mapping[str, Value]) -> int:
    value = values.get(General.ALIGNMENT, _ALIGNMENT)
    if type(value) is not int or not 0 < value <= 1 << 20 or value & (value - 1):
        cursor.refuse(f"{General.ALIGNMENT} is no power of two")
    return value


class _Cursor:
    """Takes values off the start of a file, whose first 8 bytes are known."""

    def __init__(self, path: Path, data: torch.Tensor) -> None:
        self.path, self.data, self.at = path, data.numpy().data, 8
        self._texts, self._bytes = _TEXTS, _TEXT

    def refuse(self, what: str) -> NoReturn:
        """Raises the error of a damaged file."""
        raise CheckpointError(f"{self.path}: {what}: {_DAMAGED}")

    def number(self, kind: str) -> int | float:
        """One number of numpy's type `kind`."""
        dtype = np.dtype(kind).newbyteorder("<")
        number = np.frombuffer(self.take(dtype.itemsize), dtype)[0]
        # the shortest decimal that is this number: 1e-05, not 9.999999747378752e-06
        return float(str(number)) if kind in "fd" else int(number)

    def text(self, limit: int) -> str:
        """One text of at most so many bytes."""
        size = int(self.number("Q"))
        if size > limit:
            self.refuse(f"a text claims {size} bytes")
        return str(self.take(size), "utf-8")

    def take(self, count: int) -> memoryview:
        """So many bytes."""
        if count > len(self.data) - self.at:
            raise CheckpointError(f"{self.path} ends within its header: {_DAMAGED}")
        self.at += count
        return self.data[self.at - count : self.at]

    def value(self, kind: int) -> Value:
        """One value of a type of the format."""
        if kind == _STRING:
            text = self.text(self._bytes)
            self._bytes -= len(text)
            return text
        if kind == _ARRAY:
            return self._array(int(self.number("I")), int(self.number("Q")))
        if kind not in _NUMBERS:
            self.refuse(f"a value has the unknown type {kind}")
        number = self.number(_NUMBERS[kind])
        return bool(number) if _NUMBERS[kind] == "?" else number

    def _array(self, kind: int, count: int) -> Array:
        if kind in _NUMBERS:
            letter = _NUMBERS[kind]
            return Array(letter, count, self.take(count * np.dtype(letter).itemsize))
        if kind != _STRING:
            self.refuse(f"a list has values of the unknown type {kind}")
        self._texts -= count
        if self._texts < 0:
            self.refuse(f"a list claims {count} texts")
        at, end, unpack = self.at, len(self.data), _LENGTH.unpack_from
        for _ in range(count):
            if end - at < 8:
                at = end + 1
                break
            at += 8 + unpack(self.data, at)[0]
        return Array("s", count, self.take(at - self.at))


def _tensors(cursor: _Cursor, count: int, alignment: int, data: torch.Tensor) -> dict[str, Blocks]:
    entries = {}
    for _ in range(count):
        name = cursor.text(_NAME)
        dims = int(cursor.number("I"))
        if dims > 4 or name in entries:
            cursor.refuse(f"tensor {name[:80]!r} has {dims} dimensions, or is there twice")
        shape = tuple(int(cursor.number("Q")) for _ in range(dims))[::-1]
        entries[name] = shape, int(cursor.number("I")), int(cursor.number("Q"))
    start = -(-cursor.at // alignment) * alignment
    tensors = {}
    for name, (shape, number, offset) in entries.items():
        kind, nbytes = _layout(cursor.path, name, shape, number)
        if offset % alignment:
            cursor.refuse(f"tensor {name[:80]!r} is not aligned")
        if start + offset + nbytes > len(data):
            cursor.refuse(f"it ends before its tensor {name[:80]!r} does")
        tensors[name] = Blocks(name, shape, kind, data[start + offset :][:nbytes])
    return tensors


def _layout(
    path: Path, name: str, shape: tuple[int, ...], number: int
) -> tuple["GGMLQuantizationType", int]:
    """The type of a tensor, and its bytes."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if number not in set(GGMLQuantizationType):
        raise UnsupportedModelError(
            f"{path}: tensor {name[:80]!r} has type {number}, which the gguf package does not "
            "know: update it, or quantize the model again"
        )
    kind = GGMLQuantizationType(number)
    columns, nbytes = GGML_QUANT_SIZES[kind]
    if shape[-1:] and shape[-1] % columns:
        raise CheckpointError(
            f"{path}: rows of {shape[-1]} of {name[:80]!r} are no blocks of {kind.name}: {_DAMAGED}"
        )
    return kind, math.prod(shape) // columns * nbytes

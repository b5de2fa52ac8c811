"""The little of protobuf's wire format that a tokenizer.model takes: fields written, and read.

Source: https://protobuf.dev/programming-guides/encoding/
"""

import struct
from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def integer(number: int, value: int) -> bytes:
    """A field of a whole number, a truth or an enumeration."""
    return _key(number, _VARINT) + _varint(value)


def real(number: int, value: float) -> bytes:
    """A field of a float32."""
    return _key(number, _FIXED32) + struct.pack("<f", value)


def message(number: int, body: bytes) -> bytes:
    """A field of a message, or of bytes."""
    return _key(number, _BYTES) + _varint(len(body)) + body


def text(number: int, value: str) -> bytes:
    """A field of a string."""
    return message(number, value.encode())


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of a message's fields; those of fixed size as bytes.

    Raises `ValueError` where they do not end with the message.
    """
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _read_varint(data, at)
            yield number, value
            continue
        sizes = {_FIXED64: 8, _FIXED32: 4}
        if kind not in (_BYTES, *sizes):
            raise ValueError(f"a field of kind {kind}")
        length, at = (sizes[kind], at) if kind in sizes else _read_varint(data, at)
        if len(data) - at < length:
            raise ValueError("a field that is cut short")
        yield number, data[at : at + length]
        at += length


def _key(number: int, kind: int) -> bytes:
    return _varint(number << 3 | kind)


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative ones as 64 bits
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("a number that is cut short")

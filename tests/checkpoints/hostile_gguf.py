"""GGUF files that were made to harm: counts, lengths and offsets far beyond what they hold."""

import struct
from pathlib import Path

MOST = (1 << 64) - 1


def text(value: bytes, size: int | None = None) -> bytes:
    """A text, which may claim another size than it has."""
    return struct.pack("<Q", len(value) if size is None else size) + value


def value(key: bytes, kind: int, data: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + data


def array(key: bytes, kind: int, count: int, data: bytes = b"") -> bytes:
    return value(key, 9, struct.pack("<IQ", kind, count) + data)


def tensor(name: bytes, dims: list[int], kind: int = 0, offset: int = 0) -> bytes:
    shape = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return text(name) + shape + struct.pack("<IQ", kind, offset)


def whole(
    values: list[bytes],
    tensors: list[bytes],
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    rest: bytes = bytes(4096),
) -> bytes:
    """A file of these values and tensors."""
    told = counts or (len(tensors), len(values))
    head = b"GGUF" + struct.pack("<IQQ", version, *told)
    return head + b"".join(values) + b"".join(tensors) + rest


LLAMA = value(b"general.architecture", 8, text(b"llama"))


def files() -> dict[str, bytes]:
    """Every hostile file by name."""
    small, one = tensor(b"token_embd.weight", [4, 4]), value(b"a", 4, bytes(4))
    word = struct.pack("<Q", 0)
    return {
        "magic alone": b"GGUF",
        "version 1": whole([], [], version=1),
        "version 99": whole([], [], version=99),
        "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(64),
        "tensors": whole([LLAMA], [small], counts=(1 << 60, 1)),
        "values": whole([LLAMA], [small], counts=(1, 1 << 60)),
        "counts": whole([], [], counts=(MOST, MOST)),
        "values to the end": whole([one], [], counts=(0, 1 << 16), rest=b""),
        "key": whole([text(b"a", MOST)], [], counts=(0, 1)),
        "long key": whole([text(b"a" * (1 << 20))], [], counts=(0, 1)),
        "no text": whole([text(b"\xff\xfe") + struct.pack("<I", 4) + bytes(4)], []),
        "string": whole([value(b"a", 8, text(b"", 1 << 62))], []),
        "long string": whole([value(b"a", 8, text(bytes(20 << 20)))], []),
        "strings": whole([value(b"%d" % n, 8, text(bytes(6 << 20))) for n in range(4)], []),
        "type": whole([value(b"a", 99, b"")], []),
        "list": whole([array(b"a", 4, 1 << 40)], []),
        "list of all": whole([array(b"a", 10, MOST)], []),
        "list of texts": whole([array(b"a", 8, 1 << 40)], []),
        "list of empty texts": whole([array(b"a", 8, 1 << 23)], [], rest=word * (1 << 23)),
        "lists of empty texts": whole(
            [array(b"%d" % n, 8, 1 << 21, word * (1 << 21)) for n in range(3)], []
        ),
        "text in a list": whole([array(b"a", 8, 2, text(b"", MOST))], []),
        "lists in a list": whole([array(b"a", 9, 1 << 20)], []),
        "list of nothing": whole([array(b"a", 77, 5)], []),
        "twice": whole([one, one], []),
        "alignment 0": whole([LLAMA, value(b"general.alignment", 4, bytes(4))], [small]),
        "alignment 3": whole([LLAMA, value(b"general.alignment", 4, b"\3\0\0\0")], [small]),
        "alignment 2^31": whole([LLAMA, value(b"general.alignment", 4, b"\0\0\0\x80")], [small]),
        "alignment, text": whole([LLAMA, value(b"general.alignment", 8, text(b"32"))], [small]),
        "dimensions": whole([LLAMA], [tensor(b"token_embd.weight", [1] * 1000)]),
        "claimed dimensions": whole([LLAMA], [text(b"t") + struct.pack("<I", 1 << 31)]),
        "sizes": whole([LLAMA], [tensor(b"token_embd.weight", [1 << 62, 1 << 62])]),
        "all sizes": whole([LLAMA], [tensor(b"token_embd.weight", [MOST] * 4)]),
        "offset": whole([LLAMA], [tensor(b"token_embd.weight", [4, 4], offset=1 << 40)]),
        "last offset": whole([LLAMA], [tensor(b"token_embd.weight", [4, 4], offset=MOST - 31)]),
        "odd offset": whole([LLAMA], [tensor(b"token_embd.weight", [4, 4], offset=1)]),
        "kind": whole([LLAMA], [tensor(b"token_embd.weight", [32, 4], kind=4)]),
        "kind 2^32": whole([LLAMA], [tensor(b"token_embd.weight", [32, 4], kind=(1 << 32) - 1)]),
        "part of a block": whole([LLAMA], [tensor(b"token_embd.weight", [31, 4], kind=2)]),
        "tensor twice": whole([LLAMA], [small, small]),
        "empty tensor": whole([LLAMA], [tensor(b"token_embd.weight", [0, 0])]),
        "no dimensions": whole([LLAMA], [tensor(b"token_embd.weight", [])]),
        "no architecture": whole([], [small]),
        "architecture": whole([value(b"general.architecture", 8, text(b"a\nb" * 9999))], [small]),
        "architecture 7": whole([value(b"general.architecture", 4, b"\7\0\0\0")], [small]),
        "parts": whole([LLAMA, value(b"split.count", 4, b"\xff\xff\xff\xff")], [small]),
        "no sizes": whole([LLAMA], [small]),
    }


def make_gguf(root: Path) -> list[Path]:
    """Writes them all below `root`; returns what to open."""
    folder = root / "gguf"
    folder.mkdir()
    for name, data in files().items():
        (folder / f"{name}.gguf").write_bytes(data)
    return sorted(folder.iterdir())

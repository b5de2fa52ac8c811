"""Writers of the formats of one file, in plain struct and numpy from the layouts' descriptions."""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llama2gpu.config import Config
from tests.checkpoints.writers import META_KINDS, META_TOP, Tensors

Array = NDArray[Any]
Entries = Sequence[tuple[float, bytes]]
Named = Sequence[tuple[str, torch.Tensor]]


def ungrouped(config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
    """The same model with a key-value head for every head, and the embedding as its own head."""
    times = config.heads // config.kv_heads
    told = dict(tensors)
    told["output"] = told.get("output", told["embed"])
    for name in tensors:
        if name.endswith((".wk", ".wv")):
            heads = tensors[name].view(config.kv_heads, config.head_dim, config.dim)
            told[name] = heads.repeat_interleave(times, 0).reshape(config.dim, config.dim)
    return replace(config, kv_heads=config.heads, tied=False), told


def meta_names(tensors: Tensors) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors by the names that Meta gives them, which files list."""
    for name, tensor in tensors.items():
        if name in META_TOP:
            yield META_TOP[name], tensor
        else:
            _, n, kind = name.split(".")
            yield f"layers.{n}.{META_KINDS[kind]}.weight", tensor


def _listed(tensors: Tensors | Named) -> list[tuple[str, torch.Tensor]]:
    return list(meta_names(tensors) if isinstance(tensors, dict) else tensors)


def byte_vocabulary(vocab: int) -> list[tuple[float, bytes]]:
    """Scores and texts of a vocabulary whose tokens after the 256 bytes are pairs of letters."""
    entries = [(0.0, b" \xe2\x81\x87 "), (0.0, b""), (0.0, b"")]
    entries += [(0.0, bytes([byte])) for byte in range(256)]
    letters = b" abcdefghijklmnopqrstuvwxyz"
    entries += [(-1.0 - n, bytes([letter])) for n, letter in enumerate(letters)]
    pairs = [bytes([a, b]) for a in letters for b in letters[1:]]
    entries += [(-100.0 - n, pair) for n, pair in enumerate(pairs)]
    return entries[:vocab]


def spelled_bytes(vocabulary: Entries) -> list[tuple[float, bytes]]:
    """A vocabulary as llama2.c spells its bytes."""
    names = [text for _, text in vocabulary]
    names[3:259] = [b"<0x%02X>" % byte for byte in range(256)]
    return [(score, name) for (score, _), name in zip(vocabulary, names, strict=True)]


def write_ggjt(
    path: Path,
    config: Config,
    tensors: Tensors | Named,
    vocabulary: Entries,
    *,
    multiple_of: int = 4,
    half: bool = False,
    header: dict[int, int] | None = None,
) -> Path:
    """Writes a ggjt v1 file, its last tensor first; `header` changes some of its nine numbers."""
    c = config
    numbers = [0x67676A74, 1, c.vocab, c.dim, multiple_of, c.heads, c.layers, c.head_dim, int(half)]
    for place, number in (header or {}).items():
        numbers[place] = number
    data = bytearray(struct.pack("<9i", *numbers))
    for score, text in vocabulary:
        data += struct.pack("<i", len(text)) + text + struct.pack("<f", score)
    for name, tensor in reversed(_listed(tensors)):
        kind = int(half and tensor.dim() == 2)
        raw = name.encode()
        data += struct.pack("<3i", tensor.dim(), len(raw), kind)
        data += b"".join(struct.pack("<i", size) for size in reversed(tensor.shape)) + raw
        while len(data) % 32:
            data += b"\0"
        data += tensor.float().numpy().astype("<f2" if kind else "<f4").tobytes()
    path.write_bytes(data)
    return path


def _padded(text: str) -> bytes:
    raw = text.encode() + b" "
    while len(raw) % 4:
        raw += b" "
    return struct.pack("<I", len(raw)) + raw


def _bfloat16(tensor: torch.Tensor) -> bytes:
    """The high half of each float32, which is exact for tensors that bfloat16 holds."""
    return (tensor.float().numpy().view("<u4") >> 16).astype("<u2").tobytes()


def write_lmw(
    path: Path,
    config: Config,
    tensors: Tensors | Named,
    layout: str = "A",
    tokenizer: bytes = b"",
) -> Path:
    """Writes layout A, B or C; C keeps matrices but the embedding by columns, bfloat16 as it is."""
    c = config
    data = bytearray(struct.pack("<Ii", 0x696D756C, 1))
    if layout == "C":
        data += _padded("stories 260K")
    data += struct.pack("<7i", c.dim, c.layers, c.heads, c.kv_heads, 4, c.vocab, c.context)
    data += b"" if layout == "A" else struct.pack("<f", c.rope_theta)
    data += struct.pack("<f", c.norm_eps)
    if layout == "C":
        data += struct.pack("<I", len(tokenizer)) + tokenizer
        data += b"\0" * (4 - len(tokenizer) % 4)
    for name, tensor in _listed(tensors):
        data += _padded(name) + struct.pack("<I", tensor.dim())
        data += b"".join(struct.pack("<I", size) for size in tensor.shape)
        if layout == "C":
            turned = tensor.dim() == 2 and name != "tok_embeddings.weight"
            half = tensor.dtype == torch.bfloat16
            data += struct.pack("<II", int(turned), 117 if half else 132)
            stored = tensor.T.contiguous() if turned else tensor
            data += _bfloat16(stored) if half else stored.float().numpy().tobytes()
        else:
            data += tensor.float().numpy().tobytes()
    path.write_bytes(data)
    return path


def quantized(flat: Array, bits: int, group: int) -> tuple[Array, Array]:
    """Whole numbers of groups of flat values, and the scale of each: max/127 or max/7."""
    groups = flat.astype(np.float32).reshape(-1, group)
    scales = np.abs(groups).max(1) / np.float32(127 if bits == 8 else 7)
    safe = np.where(scales > 0, scales, 1)
    return np.rint(groups / safe[:, None]).astype(np.int8), scales.astype(np.float32)


def flat_values(tensor: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """What a matrix is after it was quantized in flat groups, by the definition."""
    numbers, scales = quantized(tensor.float().numpy().ravel(), bits, group)
    dense = numbers.astype(np.float32) * scales[:, None]
    return torch.from_numpy(dense.reshape(tensor.shape))


def _integers(numbers: Array, bits: int) -> bytes:
    if bits == 8:
        return numbers.tobytes()
    stored = (numbers.ravel().astype(np.int16) + 8).astype(np.uint8)
    return bytes(first << 4 | second for first, second in zip(*[iter(stored)] * 2, strict=True))


def write_simple_llama(
    path: Path,
    config: Config,
    tensors: Tensors,
    *,
    bits: int = 32,
    group: int = 128,
    header: dict[int, int] | None = None,
) -> Path:
    """Writes version 3, or 4 of 8 or 4 bits; `header` changes some of its ten numbers."""
    c, version = config, 3 if bits == 32 else 4
    numbers = [0x7FDD7F7F, version, c.dim, c.hidden, c.heads, c.layers, c.vocab, c.context]
    numbers += [0, 0] if bits == 32 else [group, bits]
    for place, number in (header or {}).items():
        numbers[place] = number
    data = bytearray(struct.pack("<I9i", *numbers).ljust(256, b"\0"))

    def of(kind: str) -> list[torch.Tensor]:
        one = ("norm", "embed", "output")
        return (
            [tensors[kind]]
            if kind in one
            else [tensors[f"layers.{n}.{kind}"] for n in range(c.layers)]
        )

    order = ["norm", "embed", "output", "attention_norm", "ffn_norm"]
    if version == 4:
        order = ["norm", "attention_norm", "ffn_norm", "embed", "output"]
    for kind in [*order, "wq", "wk", "wv", "wo", "w1", "w2", "w3"]:
        flat = np.concatenate([tensor.float().numpy().ravel() for tensor in of(kind)])
        if version == 3 or kind.endswith("norm"):
            data += flat.tobytes()
        else:
            integers, scales = quantized(flat, bits, group)
            data += _integers(integers, bits) + scales.tobytes()
    path.write_bytes(data)
    return path

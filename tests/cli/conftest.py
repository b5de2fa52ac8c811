"""A tiny llama2.c checkpoint with its tokenizer, written byte by byte."""

import struct
from pathlib import Path

import pytest

DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, CONTEXT = 8, 12, 2, 2, 1, 16
TOKENS = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{byte:02X}>" for byte in range(256))]
TOKENS += [" ", "a", "b", " a", "ab"]
LAYER = 2 * DIM + 2 * DIM * DIM + 2 * DIM * DIM // 2 + 3 * DIM * HIDDEN
PARAMETERS = len(TOKENS) * DIM + LAYERS * LAYER + DIM


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """`tokenizer.bin`; the longer a token, the sooner it is merged."""
    data = struct.pack("<I", max(map(len, TOKENS)))
    for token in TOKENS:
        text = token.encode()
        data += struct.pack("<fI", len(text), len(text)) + text
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(data)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """`model.bin` in layout v0, without its tokenizer."""
    header = struct.pack("<7i", DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, len(TOKENS), CONTEXT)
    rope_tables = CONTEXT * DIM // HEADS
    path = tmp_path / "model.bin"
    path.write_bytes(header + bytes(4 * (PARAMETERS + rope_tables)))
    return path

"""GGUF files: every tensor to the bit, in one file or in parts."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from llama2gpu.checkpoints import open_checkpoint, tensor_shapes
from llama2gpu.config import Config
from llama2gpu.errors import CheckpointError, RequestError
from llama2gpu.quant import Dense, Int4, Int8
from tests.checkpoints.converting import written
from tests.checkpoints.gguf_files import CONFIG, blocks_of, kind_of, write_gguf
from tests.checkpoints.writers import random_tensors

PLAIN = {Kind.F32: torch.float32, Kind.F16: torch.float16, Kind.BF16: torch.bfloat16}


def quantizable() -> list[Kind]:
    """The types that the package can write."""
    found = []
    for kind in Kind:
        try:
            gguf.quantize(np.ones((1, 256), np.float32), kind)
        except (NotImplementedError, KeyError):
            continue
        found.append(kind)
    return found


def readable() -> list[Kind]:
    """The types of blocks that the package can read."""
    found = []
    for kind, (_, nbytes) in gguf.GGML_QUANT_SIZES.items():
        try:
            gguf.dequantize(np.zeros((1, nbytes), np.uint8), kind)
        except NotImplementedError:
            continue
        found.append(kind)
    return [kind for kind in found if kind not in PLAIN]


@pytest.mark.parametrize("kind", quantizable(), ids=lambda kind: kind.name)
def test_every_type_that_can_be_written(tmp_path: Path, kind: Kind) -> None:
    tensors = random_tensors(CONFIG)
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", CONFIG, tensors, kind))
    assert checkpoint.config == CONFIG
    assert checkpoint.format == "GGUF v3"
    assert checkpoint.dtype == PLAIN.get(kind, torch.float32)
    assert checkpoint.quantization == (None if kind in PLAIN else kind.name)
    sizes = {tensor.name: tensor for tensor in checkpoint.tensors()}
    for name, shape in tensor_shapes(CONFIG):
        data, its_kind = blocks_of(tensors[name], kind), kind_of(tensors[name], kind)
        wanted = torch.from_numpy(gguf.dequantize(data.view(np.uint8), its_kind)).view(shape)
        read = checkpoint.read(name)
        assert read.dtype == PLAIN.get(its_kind, torch.float32)
        assert torch.equal(read.float(), wanted), name
        assert (sizes[name].shape, sizes[name].nbytes) == (shape, data.nbytes)
        for dtype in PLAIN.values():
            out = torch.full(shape, math.nan, dtype=dtype)
            checkpoint.read_into(name, out)
            assert torch.equal(out, wanted.to(dtype)), name


@pytest.mark.parametrize("kind", readable(), ids=lambda kind: kind.name)
def test_every_type_that_can_be_read(tmp_path: Path, kind: Kind) -> None:
    """Random blocks: whatever scales they have, they are read as the package reads them."""
    shape = (CONFIG.hidden, CONFIG.dim)
    columns, nbytes = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (shape[0], shape[1] // columns, nbytes), dtype=np.uint8)
    if kind in (Kind.Q4_0, Kind.Q8_0):
        data[:, :, 1] &= 0x3B  # no infinities
    data = data.reshape(shape[0], -1)
    blocks = {"blk.0.ffn_up.weight": (data, kind)}
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", blocks=blocks))
    with np.errstate(all="ignore"):
        wanted = torch.from_numpy(gguf.dequantize(data, kind))
    read = checkpoint.read("layers.0.w3")
    assert torch.equal(read.isnan(), wanted.isnan())
    assert torch.equal(read.nan_to_num(0.5), wanted.nan_to_num(0.5))
    assert checkpoint.quantization == kind.name


@pytest.mark.parametrize(("kind", "held"), [(Kind.Q4_0, Int4), (Kind.Q8_0, Int8)])
def test_integers_stay_integers(tmp_path: Path, kind: Kind, held: type[Int4 | Int8]) -> None:
    tensors = random_tensors(CONFIG)
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", CONFIG, tensors, kind))
    for name, shape in tensor_shapes(CONFIG):
        if len(shape) == 1:
            continue
        assert checkpoint.kind(name) == held.__name__.lower()
        weight = checkpoint.weight(name)
        assert isinstance(weight, held)
        assert (weight.group, weight.scales.dtype) == (32, torch.float16)
        data = blocks_of(tensors[name], kind)
        wanted = torch.from_numpy(gguf.dequantize(data, kind)).double()
        assert torch.equal(weight.dequantize(torch.float64), wanted), name
        columns = shape[1] // 32
        scales = data.reshape(shape[0], columns, -1)[:, :, :2].copy().view(np.float16)[:, :, 0]
        assert torch.equal(weight.scales, torch.from_numpy(scales)), name


@pytest.mark.parametrize("kind", [Kind.Q4_1, Kind.Q5_0])
def test_other_types_become_dense(tmp_path: Path, kind: Kind) -> None:
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", kind=kind))
    weight = checkpoint.weight("layers.0.w1")
    assert isinstance(weight, Dense)
    assert torch.equal(weight.data, checkpoint.read("layers.0.w1"))
    assert checkpoint.kind("layers.0.w1") == "dense"


def test_rows_that_are_no_blocks(tmp_path: Path) -> None:
    """Each tensor has its own type; the kinds are told by their share of the file."""
    config = replace(CONFIG, hidden=344)
    tensors = random_tensors(config)
    q6 = np.zeros((config.vocab, 210), np.uint8)
    blocks = {"output.weight": (q6, Kind.Q6_K)}
    path = write_gguf(tmp_path / "m.gguf", config, tensors, Kind.Q4_0, blocks=blocks)
    checkpoint = open_checkpoint(path)
    assert checkpoint.quantization == "Q4_0 and Q6_K"
    kinds = {tensor.name: tensor.dtype for tensor in checkpoint.tensors()}
    assert (kinds["layers.0.w2"], kinds["layers.0.w1"]) == ("float32", "Q4_0")
    assert torch.equal(checkpoint.read("layers.0.w2"), tensors["layers.0.w2"])


def test_infinite_scales(tmp_path: Path) -> None:
    data = blocks_of(torch.ones(CONFIG.dim, CONFIG.dim), Kind.Q8_0)
    data[7, :2] = np.array([np.inf], np.float16).view(np.uint8)
    blocks = {"blk.0.attn_q.weight": (data, Kind.Q8_0)}
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", blocks=blocks))
    with pytest.raises(CheckpointError, match=r"scales of blk\.0\.attn_q\.weight hold NaN"):
        checkpoint.weight("layers.0.wq")


def test_version_2_and_another_alignment(tmp_path: Path) -> None:
    """The layout is that of version 3; tensors start at multiples of what the file says."""
    tensors = random_tensors(CONFIG)
    for alignment in (8, 32, 4096):
        path = write_gguf(
            tmp_path / "m.gguf", CONFIG, tensors, Kind.F16, general__alignment=alignment
        )
        data = bytearray(path.read_bytes())
        assert data[4:8] == b"\3\0\0\0"
        data[4] = 2
        path.write_bytes(data)
        checkpoint = open_checkpoint(path)
        assert checkpoint.format == "GGUF v2"
        for name, tensor in tensors.items():
            wanted = tensor.half() if tensor.dim() == 2 else tensor
            assert torch.equal(checkpoint.read(name), wanted)


def write_parts(folder: Path, count: int = 3) -> list[Path]:
    """A model in parts: all keys in the first, tensors over all of them."""
    tensors = list(random_tensors(CONFIG).items())
    parts = []
    for n in range(count):
        keys: dict[str, Any] = {} if n == 0 else dict.fromkeys(KEYS)
        parts.append(
            write_gguf(
                folder / f"m-{n + 1:05d}-of-{count:05d}.gguf",
                tensors=dict(tensors[n::count]),
                split__no=n,
                split__count=count,
                split__tensors__count=len(tensors),
                **keys,
            )
        )
    return parts


KEYS = ("llama__block_count", "llama__embedding_length", "llama__context_length")


def test_parts(tmp_path: Path) -> None:
    parts, tensors = write_parts(tmp_path), random_tensors(CONFIG)
    for path in parts:
        checkpoint = open_checkpoint(path)
        assert checkpoint.config == CONFIG
        for name, tensor in tensors.items():
            assert torch.equal(checkpoint.read(name), tensor)


def test_no_part_is_written_over(tmp_path: Path) -> None:
    first, second, _ = write_parts(tmp_path)
    before = second.read_bytes()
    for form in ("gguf", "llama2c-v0"):
        with pytest.raises(RequestError, match="is read by this command"):
            written(open_checkpoint(first), second, form, overwrite=True)
    assert second.read_bytes() == before


def test_parts_that_are_missing_or_mixed(tmp_path: Path) -> None:
    first, second, third = write_parts(tmp_path)
    third.rename(tmp_path / "kept")
    with pytest.raises(CheckpointError, match=r"m-00003-of-00003\.gguf is missing"):
        open_checkpoint(first)
    third.write_bytes(second.read_bytes())
    with pytest.raises(CheckpointError, match="is not part 3 of 3: download the parts again"):
        open_checkpoint(first)
    alone = first.rename(tmp_path / "alone.gguf")
    with pytest.raises(CheckpointError, match=r"is one of 3 parts, .*llama-gguf-split --merge"):
        open_checkpoint(alone)


def test_a_config_with_its_own_sizes_opens(tmp_path: Path) -> None:
    config = Config(
        dim=64, hidden=96, layers=3, heads=2, kv_heads=1, head_dim=32, vocab=33, context=8
    )
    tensors = random_tensors(config)
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", config, tensors, Kind.F16))
    for name, tensor in tensors.items():
        wanted = tensor.half() if tensor.dim() == 2 else tensor
        assert torch.equal(checkpoint.read(name), wanted), name

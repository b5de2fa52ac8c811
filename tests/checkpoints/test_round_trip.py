"""Every format gives back the canonical tensors of one model, bit for bit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llama2gpu.checkpoints import open_checkpoint, tensor_shapes
from llama2gpu.config import Config
from llama2gpu.errors import CheckpointError
from tests.checkpoints.writers import (
    CONFIG,
    Tensors,
    random_tensors,
    write_huggingface,
    write_llama2c,
    write_meta,
)

Writer = Callable[[Path, Config, Tensors], Path]

WRITERS: dict[str, Writer] = {
    "llama2c-v0": lambda p, c, t: write_llama2c(p / "m.bin", c, t, version=0),
    "llama2c-v1": lambda p, c, t: write_llama2c(p / "m.bin", c, t, version=1),
    "meta-1": lambda p, c, t: write_meta(p, c, t),
    "meta-2": lambda p, c, t: write_meta(p, c, t, shards=2),
    "meta-2-rows": lambda p, c, t: write_meta(p, c, t, shards=2, embed_by_rows=True),
    "safetensors": lambda p, c, t: write_huggingface(p, c, t),
    "safetensors-3": lambda p, c, t: write_huggingface(p, c, t, shards=3),
    "bin": lambda p, c, t: write_huggingface(p, c, t, safe=False),
    "bin-2": lambda p, c, t: write_huggingface(p, c, t, safe=False, shards=2),
}
CONFIGS = {
    "grouped": CONFIG,
    "tied": replace(CONFIG, tied=True),
    "plain": replace(CONFIG, kv_heads=4, layers=1),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_round_trip(tmp_path: Path, write: Writer, config: Config, dtype: torch.dtype) -> None:
    tensors = random_tensors(config, dtype)
    checkpoint = open_checkpoint(write(tmp_path, config, tensors))
    stored = torch.float32 if "llama2.c" in checkpoint.format else dtype
    assert checkpoint.dtype == stored
    sizes = ("dim", "hidden", "layers", "heads", "kv_heads", "head_dim", "vocab", "tied")
    for field in (*sizes, "norm_eps", "rope_theta"):
        assert getattr(checkpoint.config, field) == getattr(config, field)
    assert [(t.name, t.shape) for t in checkpoint.tensors()] == list(tensor_shapes(config))
    for info in checkpoint.tensors():
        read = checkpoint.read(info.name)
        assert read.dtype == stored
        assert not read.requires_grad
        assert info.dtype == str(stored).removeprefix("torch.")
        assert info.nbytes == read.nbytes
        assert torch.equal(read, tensors[info.name].to(stored)), info.name


@pytest.mark.parametrize("group", [1, 2, 4, 32])
def test_int8_within_its_step(tmp_path: Path, group: int) -> None:
    config = replace(CONFIG, hidden=45, dim=32)
    tensors = random_tensors(config)
    path = write_llama2c(tmp_path / "m.bin", config, tensors, version=2, group=group)
    checkpoint = open_checkpoint(path)
    assert checkpoint.config == config
    assert checkpoint.dtype == torch.float32
    for info in checkpoint.tensors():
        read, wanted = checkpoint.read(info.name), tensors[info.name]
        if len(info.shape) == 1:
            assert torch.equal(read, wanted)
            continue
        steps = wanted.reshape(-1, group).abs().amax(1, keepdim=True) / 127
        difference = (read - wanted).abs().reshape(-1, group)
        assert info.dtype == "int8"
        assert info.nbytes == wanted.numel() + 4 * (wanted.numel() // group)
        assert bool((difference <= 0.501 * steps).all()), info.name


def test_explicit_head_dim(tmp_path: Path) -> None:
    config = replace(CONFIG, head_dim=16)
    tensors = random_tensors(config)
    checkpoint = open_checkpoint(write_huggingface(tmp_path, config, tensors))
    assert checkpoint.config.q_rows == 64
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint.read(name), tensor)


def test_reads_are_views_of_the_map(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    paths = [
        write_llama2c(tmp_path / "m.bin", CONFIG, tensors),
        write_meta(tmp_path / "meta", CONFIG, tensors),
        write_huggingface(tmp_path / "hf", CONFIG, tensors),
    ]
    for path in paths:
        checkpoint = open_checkpoint(path)
        first, second = (checkpoint.read("layers.1.w2") for _ in range(2))
        address = first.data_ptr()
        with Path("/proc/self/maps").open() as maps:
            spans = [line for line in maps if str(tmp_path) in line]
        bounds = [[int(end, 16) for end in line.split()[0].split("-")] for line in spans]
        assert any(low <= address < high for low, high in bounds), checkpoint.format
        assert torch.equal(first, second)


def test_llama2c_starts_and_stops(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer.bin", "tokenizer.model", "tok96.bin"):
        (tmp_path / name).touch()
    path = write_llama2c(tmp_path / "m.bin", CONFIG, random_tensors(CONFIG))
    checkpoint = open_checkpoint(str(path), rope_theta=1e6, norm_eps=1e-6)
    assert (checkpoint.bos_id, checkpoint.stop_ids, checkpoint.default_prompt) == (1, (1, 2), "")
    assert (checkpoint.config.rope_theta, checkpoint.config.norm_eps) == (1e6, 1e-6)
    with pytest.raises(CheckpointError, match="above 1"):
        open_checkpoint(path, rope_theta=1.0)
    names = [file.name for file in checkpoint.tokenizer_files]
    assert names == ["tok96.bin", "tokenizer.bin", "tokenizer.model", "tokenizer.json"]

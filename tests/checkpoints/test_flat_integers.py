"""Integers in flat groups stay integers where groups are whole rows or parts of one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llama2gpu.checkpoints import Checkpoint, open_checkpoint
from llama2gpu.errors import CheckpointError
from llama2gpu.quant import Dense, Int4, Int8, Weight
from tests.checkpoints.single_files import flat_values, write_simple_llama
from tests.checkpoints.test_single_files import CONFIG
from tests.checkpoints.writers import Tensors, random_tensors, write_llama2c


def expected(tensors: Tensors, bits: int, group: int) -> Tensors:
    return {
        name: flat_values(tensor, bits, group) if tensor.dim() == 2 else tensor
        for name, tensor in tensors.items()
    }


def held(checkpoint: Checkpoint, wanted: Tensors) -> dict[str, Weight]:
    """Holds every tensor to what is wanted; gives the matrices."""
    weights = {name: checkpoint.weight(name) for name, t in wanted.items() if t.dim() == 2}
    for name, tensor in wanted.items():
        assert torch.equal(checkpoint.read(name), tensor), name
        if name in weights:
            assert torch.equal(weights[name].dequantize(torch.float32), tensor), name
    return weights


@pytest.mark.parametrize("block", [1 << 20, 1])
@pytest.mark.parametrize(("bits", "group"), [(8, 64), (4, 64), (4, 32), (8, 32), (8, 2), (4, 2)])
def test_integers_of_simple_llama(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int, group: int, block: int
) -> None:
    monkeypatch.setattr("llama2gpu.checkpoints.flat._BLOCK", block)
    tensors = random_tensors(CONFIG)
    path = write_simple_llama(tmp_path / "m.bin", CONFIG, tensors, bits=bits, group=group)
    checkpoint = open_checkpoint(path)
    assert (checkpoint.format, checkpoint.dtype) == ("simple-llama v4", torch.float32)
    assert checkpoint.quantization == f"int{bits}, group {group}"
    for name, weight in held(checkpoint, expected(tensors, bits, group)).items():
        if bits == 4 and group == 2:
            assert isinstance(weight, Dense)
            continue
        assert isinstance(weight, Int8 if bits == 8 else Int4), name
        assert weight.group == group
        assert not isinstance(weight, Int4) or weight.zeros is None
    infos = {info.name: info for info in checkpoint.tensors()}
    assert (infos["layers.1.w2"].dtype, infos["norm"].dtype) == (f"int{bits}", "float32")
    assert infos["layers.1.w2"].nbytes == 64 * 192 * bits // 8 + 4 * (64 * 192 // group)


@pytest.mark.parametrize("bits", [8, 4])
def test_groups_of_whole_rows_and_groups_that_straddle(tmp_path: Path, bits: int) -> None:
    """128 values are two rows of 64, but no whole number of rows of 192 columns."""
    tensors = random_tensors(CONFIG)
    path = write_simple_llama(tmp_path / "m.bin", CONFIG, tensors, bits=bits)
    weights = held(open_checkpoint(path), expected(tensors, bits, 128))
    dense = {name for name, weight in weights.items() if isinstance(weight, Dense)}
    assert dense == {"layers.0.w2", "layers.1.w2"}
    wq = weights["layers.0.wq"]
    assert not isinstance(wq, Dense)
    assert wq.scales.shape == (64, 1)


def test_zeros_and_ends(tmp_path: Path) -> None:
    """A group of zeros, whose scale is 0, and both ends of the range."""
    tensors = random_tensors(CONFIG)
    tensors["layers.0.wq"][3] = 0.0
    tensors["layers.0.wk"][0, :2] = torch.tensor([1.0, -1.0])
    for bits in (8, 4):
        path = write_simple_llama(tmp_path / "m.bin", CONFIG, tensors, bits=bits, group=64)
        held(open_checkpoint(path), expected(tensors, bits, 64))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("group", [2, 32, 64])
def test_integers_of_llama2c(tmp_path: Path, group: int, tied: bool) -> None:
    config = replace(CONFIG, kv_heads=2, hidden=172 if group == 64 else 192, tied=tied)
    tensors = random_tensors(config)
    path = write_llama2c(tmp_path / "m.bin", config, tensors, version=2, group=group)
    checkpoint = open_checkpoint(path)
    assert checkpoint.quantization == f"int8, group {group}"
    weights = {name: checkpoint.weight(name) for name, t in tensors.items() if t.dim() == 2}
    straddled = {"layers.0.w2", "layers.1.w2"} if group == 64 else set()
    assert {name for name, w in weights.items() if isinstance(w, Dense)} == straddled
    for name, weight in weights.items():
        wanted = flat_values(tensors[name], 8, group)
        assert torch.equal(checkpoint.read(name), weight.dequantize(torch.float32)), name
        assert torch.allclose(checkpoint.read(name), wanted, rtol=0, atol=1e-7), name


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_damaged_scales(tmp_path: Path, bits: int, value: float) -> None:
    path = tmp_path / "m.bin"
    write_simple_llama(path, CONFIG, random_tensors(CONFIG), bits=bits, group=64)
    data = path.read_bytes()
    path.write_bytes(data[:-4] + torch.tensor([value]).numpy().tobytes())  # the last of w3
    checkpoint = open_checkpoint(path)
    assert checkpoint.weight("layers.0.w3").shape == (192, 64)
    for read in (checkpoint.weight, checkpoint.read):
        with pytest.raises(CheckpointError, match=r"scales of layers\.1\.w3 hold NaN or infinity"):
            read("layers.1.w3")

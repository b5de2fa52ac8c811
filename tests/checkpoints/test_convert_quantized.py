"""What is quantized, or becomes so, on its way into another format."""

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from llama2gpu.checkpoints import RandomCheckpoint, open_checkpoint, tensor_shapes
from llama2gpu.checkpoints.gguf_names import NAMES
from llama2gpu.config import Config
from llama2gpu.errors import RequestError
from llama2gpu.quant import Dense, Int4, Int8
from llama2gpu.quant.spec import parse_spec
from tests.checkpoints.converting import CONFIG, ODD, TIED, assert_same, written
from tests.checkpoints.writers import random_tensors, write_huggingface, write_llama2c


def test_int8_of_llama2c(tmp_path: Path) -> None:
    for config, group, notes in ((CONFIG, 32, 1), (replace(CONFIG, hidden=128), 64, 0),
                                 (ODD, 8, 1)):  # fmt: skip
        tensors = random_tensors(config)
        tensors["layers.0.w1"][3:5] = 0.0
        source = open_checkpoint(write_huggingface(tmp_path / f"{group}", config, tensors))
        found, tally = written(source, tmp_path / f"{group}.bin", "llama2c-v2")
        assert len(tally.notes) == notes
        assert all(f"scales are of {group} values, not 64" in note for note in tally.notes)
        lost = total = 0.0
        for name, shape in tensor_shapes(config):
            value, wanted = found.read(name), source.read(name)
            if len(shape) == 1:
                assert torch.equal(value, wanted)
                continue
            steps = wanted.view(-1, group).abs().amax(1) / 127
            error = (value - wanted).view(-1, group).abs().amax(1)
            assert (error <= 0.5001 * steps).all(), name
            lost += float((value - wanted).double().square().sum())
            total += float(wanted.double().square().sum())
        assert tally.rounded == 9 * config.layers - 2 * config.layers + 2
        assert tally.error == pytest.approx((lost / total) ** 0.5)
        wanted_bytes = (tmp_path / f"{group}.bin").read_bytes()
        other = write_llama2c(tmp_path / "o.bin", config, tensors, version=2, group=group)
        if not (tensors["layers.0.w1"] == 0).any():
            assert other.read_bytes() == wanted_bytes


@pytest.mark.parametrize("asked", ["int8", "int8:64", "int8:32"])
def test_int8_stays_as_it_is(asked: str, tmp_path: Path) -> None:
    """Groups of a multiple of the file's: llama2.c's and GGUF's scales are repeated."""
    config = replace(CONFIG, hidden=128)
    source = RandomCheckpoint(config, torch.float16, quant=parse_spec(asked))
    dequantized = {
        name: source.weight(name).dequantize(torch.float32)
        for name, shape in tensor_shapes(config)
        if len(shape) == 2
    }
    for form in ("gguf", "hf", "llama2c-v1", "llama2c-v2"):
        found, tally = written(source, tmp_path / form, form)
        kept = set(dequantized) - ({"embed", "output"} if form == "llama2c-v2" else set())
        for name in kept:
            values = found.weight(name).dequantize(torch.float32)
            assert torch.equal(values, dequantized[name]), (form, name)
        assert tally.rounded == len(dequantized) - len(kept)
        assert (found.quantization is None) == (form == "llama2c-v1")


@pytest.mark.parametrize("asked", ["int4:32", "int4:32+zeros", "int4:32+head"])
def test_int4_stays_as_it_is(asked: str, tmp_path: Path) -> None:
    source = RandomCheckpoint(CONFIG, torch.float16, quant=parse_spec(asked))
    dense = 2 - asked.endswith("head")
    for form, quant, rounded in (("gguf", None, 0), ("hf", None, 0), ("llama2c-v2", None, dense),
                                 ("gguf", "Q8_0", dense)):  # fmt: skip
        found, tally = written(source, tmp_path / f"{form}{quant}", form, quant=quant)
        assert tally.rounded == rounded  # a zero point of 8 times a scale is a float16 too
        if rounded:
            kept = found.read("layers.0.wq"), found.read("layers.1.w2")
            for value, name in zip(kept, ("layers.0.wq", "layers.1.w2"), strict=True):
                assert torch.equal(value, source.weight(name).dequantize(torch.float32))
            continue
        for name in ("layers.0.wq", "layers.1.w2", "output"):
            wanted = source.weight(name)
            values = wanted.dequantize(torch.float32)
            assert torch.equal(found.weight(name).dequantize(torch.float32), values), name
            if asked != "int4:32+zeros" and not isinstance(wanted, Dense):
                assert isinstance(found.weight(name), Int4)


def test_what_blocks_can_not_have(tmp_path: Path) -> None:
    """Zero points that float16 must round, columns in another order, and a scale a row of 40."""
    source = RandomCheckpoint(CONFIG, torch.float16, quant=parse_spec("int4:32+zeros"))
    weight, read = source.weight("layers.0.wq"), source.weight
    assert isinstance(weight, Int4)
    assert weight.zeros is not None
    other = read("layers.0.wv")
    assert isinstance(other, Int4)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    scales = torch.rand(weight.scales.shape).half()
    changed = {
        "layers.0.wq": replace(weight, zeros=torch.full_like(weight.zeros, 13), scales=scales),
        "layers.0.wv": replace(other, order=order),
    }
    source.weight = lambda name: changed[name] if name in changed else read(name)  # type: ignore[method-assign]
    found, tally = written(source, tmp_path / "out.gguf", "gguf")
    kinds = {info.name: info.dtype for info in found.tensors()}
    assert kinds["layers.0.wq"] == "Q4_1"
    assert kinds["layers.0.wv"] == "float16"
    assert tally.notes == [
        "made dense, as GGUF has no such groups or order of columns: layers.0.wv"
    ]
    assert tally.rounded == 2
    for name, weight in changed.items():
        error = found.read(name).float() - weight.dequantize(torch.float32)
        assert 0 < error.abs().max() < 13 * 2.0**-11
    odd = RandomCheckpoint(ODD, torch.float16, quant=parse_spec("int8"))
    assert written(odd, tmp_path / "odd.gguf", "gguf")[0].quantization is None


@pytest.mark.parametrize("config", [CONFIG, TIED, ODD], ids=["untied", "tied", "odd"])
@pytest.mark.parametrize("quant", ["Q8_0", "Q4_0", "Q4_1"])
def test_quantized_gguf(quant: str, config: Config, tmp_path: Path) -> None:
    source = RandomCheckpoint(config, torch.bfloat16)
    found, tally = written(source, tmp_path / "out.gguf", "gguf", quant=quant)
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    head = "embed" if config.tied else "output"
    rounded = 0
    for name, shape in tensor_shapes(config):
        stored, wanted = tensors[NAMES(name)], source.read(name).float().numpy()
        assert tuple(stored.shape) == shape[::-1]
        blocks = len(shape) == 2 and shape[1] % 32 == 0
        kind = "F32" if len(shape) == 1 else "BF16"
        if blocks:
            kind = "Q8_0" if name == head else quant
            kept = gguf.quants.quantize(wanted, gguf.GGMLQuantizationType[kind])
            wanted = gguf.quants.dequantize(kept, gguf.GGMLQuantizationType[kind])
        rounded += blocks
        assert stored.tensor_type.name == kind
        read = gguf.quants.dequantize(stored.data, stored.tensor_type)
        assert np.array_equal(read.reshape(shape), wanted), name
        assert np.array_equal(found.read(name).float().numpy(), wanted), name
    assert tally.rounded == rounded
    assert (tally.error > 0) == (rounded > 0)
    dense = 7 * config.layers + 2 - config.tied - rounded
    told = f"dense, as 32 does not divide the columns: embed and {dense - 1} more"
    assert tally.notes == ([told] if dense else [])
    # quantized once more in the same way, nothing changes
    again, tally = written(found, tmp_path / "again.gguf", "gguf", quant=quant)
    assert_same(again, found)
    if quant == "Q8_0":
        assert tally.rounded == 0
    plain, _ = written(found, tmp_path / "plain.gguf", "gguf", dense=True)
    assert plain.quantization is None


def test_types(tmp_path: Path) -> None:
    source = RandomCheckpoint(CONFIG, torch.float32)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for form in ("hf", "gguf"):
            path = tmp_path / f"{form}-{dtype}"
            found, tally = written(source, path, form, dtype=dtype)
            assert found.dtype == dtype
            wanted = source.read("layers.0.w1").to(dtype)
            assert torch.equal(found.read("layers.0.w1"), wanted)
            assert (tally.error > 0) == (dtype != torch.float32)
            assert tally.error < {torch.float16: 2e-3, torch.bfloat16: 4e-3}.get(dtype, 1e-9)


@pytest.mark.parametrize("form", ["hf", "gguf"])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [(1e6, "beyond what the type can hold: give --dtype fp32"), (torch.nan, "NaN")],
)
def test_weights_beyond_float16(form: str, wrong: float, message: str, tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    tensors["layers.1.w2"][3, 4] = wrong
    source = open_checkpoint(write_huggingface(tmp_path / "in", CONFIG, tensors))
    with pytest.raises(RequestError, match=f"layers.1.w2.*{message}"):
        written(source, tmp_path / "out", form, dtype=torch.float16)
    for quant, kind in ((None, "llama2c-v2"), ("Q8_0", "gguf")):
        if wrong != wrong:
            with pytest.raises(RequestError, match=f"layers.1.w2.*{message}"):
                written(source, tmp_path / "out", kind, quant=quant)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_gptq_and_back(tmp_path: Path) -> None:
    """GGUF's blocks become GPTQ's groups, and blocks again."""
    source = RandomCheckpoint(CONFIG, torch.float32)
    for quant, kind in (("Q8_0", Int8), ("Q4_0", Int4)):
        first, _ = written(source, tmp_path / f"{quant}.gguf", "gguf", quant=quant)
        folder, tally = written(first, tmp_path / quant, "hf")
        assert tally.rounded == 0
        assert isinstance(folder.weight("layers.0.wq"), kind)
        assert isinstance(folder.weight("embed"), Dense)  # other engines read no other
        assert [note.rpartition(": ")[2] for note in tally.notes] == ["embed"]
        assert_same(folder, first)
        again, _ = written(folder, tmp_path / f"{quant}-again.gguf", "gguf", quant=quant)
        assert_same(again, first)
        dense, _ = written(first, tmp_path / f"{quant}-dense", "hf", dense=True)
        assert dense.quantization is None
        assert_same(dense, first)

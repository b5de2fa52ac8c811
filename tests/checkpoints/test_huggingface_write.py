"""Folders that are written: what others find in them, and that they appear whole or not at all."""

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llama2gpu.checkpoints import (
    Checkpoint,
    huggingface_write,
    open_checkpoint,
    tensor_shapes,
)
from llama2gpu.checkpoints.huggingface_write import Writer
from llama2gpu.checkpoints.huggingface_write import write_huggingface as write
from llama2gpu.config import Config
from llama2gpu.errors import RequestError
from llama2gpu.quant import Dense, Int4, Int8, Weight, int4
from tests.checkpoints.gptq import CONFIG, canonical_rows, module_of, read_parts
from tests.checkpoints.writers import HF_TOP, Tensors, half_split, random_tensors

DENSE = random_tensors(CONFIG, torch.float16)
MATRICES = [name for name, shape in tensor_shapes(CONFIG) if len(shape) == 2 and name != "embed"]


def random_weight(
    shape: tuple[int, int], bits: int, group: int, *, zeros: bool = False, ordered: bool = False
) -> Int4 | Int8:
    generator = torch.Generator().manual_seed(shape[0] * 1000 + shape[1] + bits)
    grid = (shape[0], shape[1] // group)
    scales = torch.empty(grid).uniform_(0.001, 0.02, generator=generator).half()
    if bits == 8:
        data = torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8)
        return Int8(data, scales)
    values = torch.randint(0, 16, shape, generator=generator)
    points = torch.randint(1, 16, grid, generator=generator) if zeros else None
    made = int4(values, scales, points)
    if not ordered:
        return made
    return replace(made, order=torch.randperm(shape[1], generator=generator))


def quantized(bits: int, group: int | None, **options: bool) -> dict[str, Weight]:
    """All tensors of a model, the matrices quantized; group None is a scale a row."""
    return {
        name: Dense(tensor)
        if name not in MATRICES
        else random_weight(
            (tensor.shape[0], tensor.shape[1]), bits, group or tensor.shape[1], **options
        )
        for name, tensor in DENSE.items()
    }


def save(
    out: Path,
    weights: dict[str, Weight] | Tensors,
    config: Config = CONFIG,
    overwrite: bool = False,
) -> Checkpoint:
    with write(out, config, torch.float16, overwrite=overwrite) as folder:
        for name, weight in weights.items():
            folder.add(name, weight)
    return open_checkpoint(out)


def add_all(folder: Writer, names: Iterable[str]) -> None:
    for name in names:
        folder.add(name, DENSE[name])


def equal(a: Weight, b: Weight) -> bool:
    if isinstance(a, Dense) and isinstance(b, Dense):
        return torch.equal(a.data, b.data)
    if isinstance(a, Int8) and isinstance(b, Int8):
        return torch.equal(a.data, b.data) and torch.equal(a.scales, b.scales)
    assert isinstance(a, Int4)
    assert isinstance(b, Int4)
    if not torch.equal(a.packed, b.packed) or not torch.equal(a.scales, b.scales):
        return False
    if a.zeros is None or b.zeros is None:
        return a.zeros is b.zeros
    return torch.equal(a.zeros, b.zeros)


def stored_in(folder: Path) -> Tensors:
    """Every tensor of the folder, by the name that others look for."""
    return {
        k: v for path in sorted(folder.glob("*.safetensors")) for k, v in load_file(path).items()
    }


@pytest.mark.parametrize("shard", [1 << 30, 9000])
@pytest.mark.parametrize(
    ("bits", "group", "zeros"),
    [(4, 32, False), (4, 32, True), (4, None, True), (8, 32, False), (8, None, False)],
)
def test_round_trip(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bits: int,
    group: int | None,
    zeros: bool,
    shard: int,
) -> None:
    monkeypatch.setattr(huggingface_write, "SHARD_BYTES", shard)
    out, weights = (
        tmp_path / "new" / "out",
        quantized(bits, group, **({"zeros": True} if zeros else {})),
    )
    checkpoint = save(out, weights)
    assert checkpoint.config == CONFIG
    assert checkpoint.dtype == torch.float16
    for name, weight in weights.items():
        assert equal(checkpoint.weight(name), weight), name
    stored = stored_in(out)
    for name in ("layers.0.wq", "layers.1.w2", "output"):
        parts = {
            part: stored[f"{module_of(name)}.{part}"]
            for part in ("qweight", "qzeros", "scales", "g_idx")
        }
        found = torch.from_numpy(canonical_rows(name, read_parts(parts, bits)))
        assert torch.equal(found, weights[name].dequantize(torch.float64)), name
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    files = {path.name for path in out.glob("model*")}
    if shard > 9000:
        assert files == {"model.safetensors"}
    else:
        index = json.loads((out / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"].values()) | {"model.safetensors.index.json"} == files
        assert f"model-00001-of-{len(files) - 1:05d}.safetensors" in files
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in stored.values())


def test_order_of_columns(tmp_path: Path) -> None:
    weights = quantized(4, 32, ordered=True, zeros=True)
    checkpoint = save(tmp_path / "out", weights)
    for name in MATRICES:
        found, given = (
            w.dequantize(torch.float64) for w in (checkpoint.weight(name), weights[name])
        )
        assert torch.equal(found, given), name
    told = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert told["desc_act"] is True


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dense(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = random_tensors(CONFIG, dtype)
    with write(tmp_path / "out", CONFIG, dtype) as folder:
        for name in reversed(tensors):
            folder.add(name, tensors[name])
    checkpoint = open_checkpoint(tmp_path / "out")
    assert checkpoint.quantization is None
    assert checkpoint.dtype == dtype
    assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in tensors.items())
    stored = stored_in(tmp_path / "out")
    wanted = half_split(tensors["layers.1.wk"], CONFIG.head_dim)
    assert torch.equal(stored["model.layers.1.self_attn.k_proj.weight"], wanted)
    assert torch.equal(stored[HF_TOP["embed"]], tensors["embed"])


def test_what_other_engines_are_told(tmp_path: Path) -> None:
    weights = quantized(4, 32)
    for n in range(2):
        weights[f"layers.{n}.w2"] = Dense(DENSE[f"layers.{n}.w2"])
    for name in ("layers.0.wq", "layers.0.wk", "layers.0.wv"):
        rows, columns = DENSE[name].shape
        weights[name] = random_weight((rows, columns), 8, 64)
    weights["layers.1.w1"] = random_weight((96, 64), 4, 64)
    checkpoint = save(tmp_path / "out", weights)
    assert all(equal(checkpoint.weight(name), weight) for name, weight in weights.items())
    told = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    dynamic = told.pop("dynamic")
    assert told == {
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "bits": 4,
        "group_size": 32,
        "sym": True,
        "desc_act": False,
        "lm_head": True,
        "pack_dtype": "int32",
        "meta": {"quantizer": ["llama2gpu"]},
    }

    def rule(module: str) -> object:
        """As GPTQModel and vLLM look it up: the first pattern that matches from the start."""
        for pattern, values in dynamic.items():
            if re.match(pattern[2:], module):
                return False if pattern.startswith("-:") else values
        return None

    layer = "model.layers.0."
    assert rule(layer + "mlp.down_proj") is False
    for part in ("q_proj", "v_proj", "qkv_proj"):
        assert rule(layer + "self_attn." + part) == {"bits": 8, "group_size": -1}
    assert rule(layer + "self_attn.o_proj") is None
    assert rule("model.layers.1.mlp.gate_proj") == {"bits": 4, "group_size": -1}
    usual = ("model.layers.1.self_attn.qkv_proj", "model.layers.1.mlp.gate_up_proj", "lm_head")
    for module in (layer + "mlp.gate_proj", *usual):
        assert rule(module) is None


def test_opened_by_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.utils.quantization_config import GPTQConfig

    save(tmp_path / "int4", quantized(4, 32, zeros=True))
    config = transformers.AutoConfig.from_pretrained(tmp_path / "int4")
    told = config.quantization_config
    read: Any = GPTQConfig.from_dict(  # type: ignore[no-untyped-call]
        told if isinstance(told, dict) else told.to_dict()
    )
    assert (read.bits, read.group_size, read.sym, read.desc_act) == (4, 32, False, False)
    assert read.format == "gptq"
    save(tmp_path / "dense", random_tensors(CONFIG, torch.float16))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    state = model.state_dict()
    assert state.keys() == stored_in(tmp_path / "dense").keys()
    found = state["model.layers.0.mlp.up_proj.weight"]
    assert torch.equal(found.half(), DENSE["layers.0.w3"])


def test_tied_embedding_can_be_quantized(tmp_path: Path) -> None:
    tied = replace(CONFIG, tied=True)
    weights = {name: weight for name, weight in quantized(4, 32).items() if name != "output"}
    weights["embed"] = random_weight((96, 64), 4, 32)
    checkpoint = save(tmp_path / "out", weights, tied)
    assert checkpoint.config.tied
    assert checkpoint.dtype == torch.float16
    assert equal(checkpoint.weight("embed"), weights["embed"])


UNSAVED: dict[str, tuple[str, Weight, str]] = {
    "scales": (
        "layers.0.wo",
        Int8(torch.ones(64, 64, dtype=torch.int8), torch.ones(64, 1, dtype=torch.bfloat16)),
        "scales are bfloat16",
    ),
    "zero": (
        "layers.0.wo",
        int4(torch.ones(64, 64), torch.ones(64, 1).half(), torch.zeros(64, 1)),
        "zero point of 0",
    ),
    "name": ("layers.2.wo", Dense(torch.ones(64, 64)), "has no tensor layers.2.wo"),
    "shape": ("layers.0.w1", Dense(torch.ones(64, 96)), r"no tensor layers.0.w1 of \[64, 96\]"),
    "norm": ("norm", Dense(torch.ones(64, 1)), "no tensor norm"),
}


@pytest.mark.parametrize("case", UNSAVED)
def test_what_cannot_be_saved(tmp_path: Path, case: str) -> None:
    name, weight, told = UNSAVED[case]
    with (
        pytest.raises(RequestError, match=told),
        write(tmp_path / "out", CONFIG, torch.float16) as folder,
    ):
        folder.add(name, weight)
    assert not list(tmp_path.iterdir())


def test_rows_that_fill_no_word(tmp_path: Path) -> None:
    odd = replace(CONFIG, hidden=36)
    with (
        pytest.raises(
            RequestError, match=r"layers\.0\.w1 can't be saved .*\[36, 64\], no multiple of 8"
        ),
        write(tmp_path / "out", odd, torch.float16) as folder,
    ):
        folder.add("layers.0.w1", random_weight((36, 64), 4, 32))

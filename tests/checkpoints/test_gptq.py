"""GPTQ folders of others: packed where that can be, exact everywhere, refused in one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from llama2gpu.checkpoints import Checkpoint, open_checkpoint
from llama2gpu.errors import CheckpointError, UnsupportedModelError
from llama2gpu.quant import Dense, Int4, Int8, Weight
from tests.checkpoints.gptq import (
    CONFIG,
    Matrix,
    canonical_rows,
    matrices_of,
    module_of,
    quantization,
    random_matrix,
    set_fields,
    write_gptq,
)
from tests.checkpoints.writers import random_tensors, write_huggingface


def check(checkpoint: Checkpoint, matrices: dict[str, Matrix]) -> dict[str, Weight]:
    """Holds every matrix to its definition; gives them."""
    weights = {name: checkpoint.weight(name) for name in matrices}
    for name, weight in weights.items():
        wanted = torch.from_numpy(canonical_rows(name, matrices[name].dense()))
        exact = weight.dequantize(torch.float64)
        if isinstance(weight, Dense):
            assert weight.data.dtype == checkpoint.dtype
            wanted = wanted.float().to(checkpoint.dtype).double()
        assert torch.equal(exact, wanted), name
        read = checkpoint.read(name)
        assert read.dtype == checkpoint.dtype == torch.float16
        assert torch.equal(read, weight.dequantize(torch.float16)), name
    return weights


@pytest.mark.parametrize("group", [32, 64, -1])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("v2", [False, True])
def test_int4(tmp_path: Path, group: int, zeros: bool, v2: bool) -> None:
    wide = {n: m for n, m in matrices_of(group=64 if group > 0 else 96).items() if "w2" not in n}
    matrices = matrices_of(group=32, zeros=zeros) if group == 32 else wide
    told = quantization(4, group, **({"checkpoint_format": "gptq_v2"} if v2 else {}))
    checkpoint = open_checkpoint(write_gptq(tmp_path, matrices, told=told, v2=v2))
    weights = check(checkpoint, matrices)
    for weight in weights.values():
        assert isinstance(weight, Int4)
        assert weight.order is None
        assert (weight.zeros is not None) == (zeros and group == 32)
        assert weight.scales.dtype == torch.float16
    infos = {info.name: info for info in checkpoint.tensors()}
    assert {infos[name].dtype for name in matrices} == {"int4"}
    assert infos["layers.1.w1"].shape == (96, 64)
    parts = matrices["layers.1.w1"].parts()
    assert infos["layers.1.w1"].nbytes == sum(part.nbytes for part in parts.values())
    assert checkpoint.quantization == f"GPTQ int4, {'a scale a row' if group < 0 else 'group'}" + (
        "" if group < 0 else f" {group}"
    )


@pytest.mark.parametrize("group", [32, -1])
def test_int8(tmp_path: Path, group: int) -> None:
    matrices = matrices_of(group=group if group > 0 else 96, bits=8)
    folder = write_gptq(tmp_path, matrices, told=quantization(8, group))
    checkpoint = open_checkpoint(folder)
    assert all(isinstance(weight, Int8) for weight in check(checkpoint, matrices).values())
    assert {info.dtype for info in checkpoint.tensors()} == {"int8", "float16"}


def test_int8_at_its_ends_and_beyond(tmp_path: Path) -> None:
    matrices = matrices_of(bits=8)
    matrices["layers.0.wq"].values[3, 5] = 0
    matrices["layers.1.wk"].zeros[1, 1] = 127
    matrices["layers.0.w2"].g_idx = matrices["layers.0.w2"].g_idx[::-1].copy()
    weights = check(open_checkpoint(write_gptq(tmp_path, matrices)), matrices)
    dense = {name for name, weight in weights.items() if isinstance(weight, Dense)}
    assert dense == {"layers.1.wk", "layers.0.w2"}
    lowest = weights["layers.0.wq"]
    assert isinstance(lowest, Int8)  # a stored 0 is -128, which int8 has
    assert int(lowest.data[6, 5]) == -128  # row 3 in adjacent pairs


def test_columns_in_another_order(tmp_path: Path) -> None:
    matrices, rng = matrices_of(zeros=True), np.random.default_rng(0)
    for matrix in matrices.values():
        rng.shuffle(matrix.g_idx)
    weights = check(open_checkpoint(write_gptq(tmp_path, matrices)), matrices)
    for name, weight in weights.items():
        assert isinstance(weight, Int4)
        assert weight.order is not None
        assert weight.order.equal(torch.from_numpy(matrices[name].g_idx.argsort(kind="stable")))


def test_groups_that_have_no_packed_form(tmp_path: Path) -> None:
    """Groups of 16, and a last one that is shorter: exact, but dense."""
    small = matrices_of(group=16)
    assert all(
        isinstance(weight, Dense)
        for weight in check(
            open_checkpoint(write_gptq(tmp_path / "16", small, told=quantization(4, 16))), small
        ).values()
    )
    ragged = matrices_of(group=64)
    told = quantization(4, 64)
    weights = check(open_checkpoint(write_gptq(tmp_path / "64", ragged, told=told)), ragged)
    dense = {name for name, weight in weights.items() if isinstance(weight, Dense)}
    assert dense == {"layers.0.w2", "layers.1.w2"}
    uneven = matrices_of()
    uneven["layers.0.wv"].g_idx[:] = np.arange(64) // 48
    weights = check(open_checkpoint(write_gptq(tmp_path / "uneven", uneven)), uneven)
    assert [n for n, weight in weights.items() if isinstance(weight, Dense)] == ["layers.0.wv"]


def test_neighbours_and_heads(tmp_path: Path) -> None:
    """Dense matrices beside quantized ones, a quantized head, another size by its shapes."""
    matrices = {n: m for n, m in matrices_of().items() if ".wv" not in n}
    matrices["output"] = random_matrix(96, 64, group=64, bits=8)
    never_run = "-:((model.)+)+x$"
    told = quantization(dynamic={"+:lm_head": {"bits": 8, "group_size": 64}, never_run: {}})
    checkpoint = open_checkpoint(write_gptq(tmp_path, matrices, told=told))
    weights = check(checkpoint, matrices)
    assert isinstance(weights["output"], Int8)
    wv = checkpoint.weight("layers.0.wv")
    assert isinstance(wv, Dense)
    assert torch.equal(wv.data, random_tensors(CONFIG, torch.float16)["layers.0.wv"])
    assert checkpoint.quantization == "GPTQ int4, group 32, or as each matrix tells"


def test_what_old_writers_leave(tmp_path: Path) -> None:
    """Biases of zero, `g_idx` that is missing or all zeros, a stored zero point of 15."""
    matrices = matrices_of(zeros=True)
    matrices["layers.0.wo"].zeros[0, 0] = 0
    module = module_of("layers.0.w1")
    change = {f"{module}.bias": torch.zeros(96, dtype=torch.float16)}
    change[f"{module}.g_idx"] = torch.zeros(64, dtype=torch.int32)
    checkpoint = open_checkpoint(write_gptq(tmp_path, matrices, change=change))
    weights = check(checkpoint, matrices)
    wo = weights["layers.0.wo"]
    assert isinstance(wo, Int4)
    assert wo.zeros is not None
    assert wo.zeros[0, 0] == 0
    change[f"{module}.bias"][3] = 1.0
    checkpoint = open_checkpoint(write_gptq(tmp_path, matrices, change=change))
    with pytest.raises(UnsupportedModelError, match="has a bias, which is not supported"):
        checkpoint.weight("layers.0.w1")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"quant_method": "awq"}, r"qweight is int32 \[8, 64\], but .* makes it int32 \[64, 8\]"),
        ({"quant_method": "bitsandbytes"}, "quant_method 'bitsandbytes'"),
        ({"quant_method": "fp8"}, "quant_method 'fp8'"),
        ({"quant_method": None}, "quant_method 'none'"),
        ({"quant_method": 3}, "quant_method must be a string, not 3"),
        ({"quant_method": "x\n" * 5000}, "quant_method 'x"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format 'marlin'"),
        ({"is_marlin_format": True}, "checkpoint_format 'gptq' is not supported"),
        ({"bits": 3}, "a quantization to 3 bits"),
        ({"bits": 1 << 200}, "bits is not supported: give one with 4 or 8"),
        ({"bits": "4"}, "bits must be a whole number"),
        ({"bits": None}, "lacks bits"),
        ({"group_size": 0}, "group_size is 0"),
        ({"group_size": -2}, "group_size is -2"),
        ({"group_size": 1 << 70}, "group_size is 11805916"),
        ({"group_size": 32.0}, "group_size must be a whole number"),
        ({"dynamic": [1]}, "dynamic must be a JSON object"),
        ({"bits": 8}, r"qweight is int32 \[8, 64\], but the configuration makes it int32 \[16, 64"),
        ({"group_size": 64}, r"qzeros is int32 \[2, 8\], but .* \[1, 8\]"),
    ],
)
def test_hostile_fields(tmp_path: Path, fields: dict[str, Any], told: str) -> None:
    with pytest.raises(CheckpointError, match=told) as error:
        open_checkpoint(set_fields(write_gptq(tmp_path, matrices_of()), **fields))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


W1 = "model.layers.1.mlp.gate_proj"
CHANGES: dict[str, tuple[str, torch.Tensor, str]] = {
    "qweight shape": (
        "qweight",
        torch.zeros(8, 95, dtype=torch.int32),
        r"qweight is int32 \[8, 95",
    ),
    "qweight dtype": ("qweight", torch.zeros(8, 96), "qweight is float32"),
    "qweight flat": ("qweight", torch.zeros(8 * 96, dtype=torch.int32), "qweight is int32"),
    "qzeros": ("qzeros", torch.zeros(2, 96, dtype=torch.int32), r"makes it int32 \[2, 12\]"),
    "scales": ("scales", torch.ones(3, 96).half(), r"scales is float16 \[3, 96\]"),
    "scales dtype": ("scales", torch.ones(2, 96, dtype=torch.int32), "scales is int32"),
    "g_idx": ("g_idx", torch.zeros(63, dtype=torch.int32), r"g_idx is int32 \[63\]"),
    "both": ("weight", torch.ones(96, 64).half(), f"{W1} twice"),
}


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("case", CHANGES)
def test_parts_that_do_not_fit(tmp_path: Path, case: str, mixed: bool) -> None:
    part, tensor, told = CHANGES[case]
    write_gptq(tmp_path, matrices_of(), change={f"{W1}.{part}": tensor})
    if mixed:
        set_fields(tmp_path, dynamic={"-:x": {}})
        told = "not of one model"
    with pytest.raises(CheckpointError, match=told) as error:
        open_checkpoint(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", ["qzeros", "scales", "qweight"])
def test_missing_parts(tmp_path: Path, part: str) -> None:
    folder = write_gptq(tmp_path, matrices_of())
    tensors = load_file(folder / "model.safetensors")
    del tensors[f"{W1}.{part}"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks|holds the tensor"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("part", "value", "told"),
    [
        ("g_idx", 2, "g_idx names other groups than 0 to 1"),
        ("g_idx", -1, "g_idx names other groups"),
        ("scales", float("nan"), "scales hold NaN or infinity"),
        ("scales", float("inf"), "scales hold NaN or infinity"),
    ],
)
def test_damaged_data(tmp_path: Path, part: str, value: float, told: str) -> None:
    matrices = matrices_of()
    damaged = matrices["layers.1.w1"].parts()[part].clone()
    damaged.view(-1)[5] = value
    checkpoint = open_checkpoint(write_gptq(tmp_path, matrices, change={f"{W1}.{part}": damaged}))
    for read in (checkpoint.weight, checkpoint.read):
        with pytest.raises(CheckpointError, match=told):
            read("layers.1.w1")


def test_quantized_tensors_without_a_word(tmp_path: Path) -> None:
    folder = write_gptq(tmp_path, matrices_of())
    fields = json.loads((folder / "config.json").read_text())
    del fields["quantization_config"]
    (folder / "config.json").write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match=r"q_proj\.weight"):
        open_checkpoint(folder)


def test_weight_of_a_dense_checkpoint(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG, torch.bfloat16)
    checkpoint = open_checkpoint(write_huggingface(tmp_path, CONFIG, tensors))
    weight = checkpoint.weight("layers.0.wk")
    assert isinstance(weight, Dense)
    assert torch.equal(weight.data, tensors["layers.0.wk"])
    assert checkpoint.quantization is None
    with pytest.raises(CheckpointError, match=r"holds no tensor 'layers\.9\.wk'"):
        checkpoint.weight("layers.9.wk")

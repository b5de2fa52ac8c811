"""AWQ folders of others: packed where that can be, exact everywhere, refused in one line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llama2gpu.checkpoints import open_checkpoint
from llama2gpu.errors import CheckpointError
from llama2gpu.quant import Dense, Int4
from tests.checkpoints.awq import awq_fields, write_awq
from tests.checkpoints.gptq import CONFIG, matrices_of, module_of, random_matrix, set_fields
from tests.checkpoints.test_gptq import check
from tests.checkpoints.writers import random_tensors

W1 = "model.layers.1.mlp.gate_proj"


@pytest.mark.parametrize("group", [32, -1])
@pytest.mark.parametrize("zeros", [False, True])
def test_int4(tmp_path: Path, group: int, zeros: bool) -> None:
    matrices = matrices_of(group=32 if group > 0 else 96, zeros=zeros)
    matrices["layers.0.wo"].zeros[0, 0] = 0 if zeros else 8
    told = awq_fields(group, modules_to_not_convert=None)
    checkpoint = open_checkpoint(write_awq(tmp_path, matrices, told=told))
    for weight in check(checkpoint, matrices).values():
        assert isinstance(weight, Int4)
        assert weight.order is None
        assert (weight.zeros is not None) == zeros
        assert weight.scales.dtype == torch.float16
    infos = {info.name: info for info in checkpoint.tensors()}
    assert {infos[name].dtype for name in matrices} == {"int4"}
    assert infos["layers.1.w1"].nbytes == 64 * 12 * 4 + len(
        range(0, 64, 32 if group > 0 else 64)
    ) * (12 * 4 + 96 * 2)
    assert checkpoint.quantization == (
        "AWQ int4, group 32" if group > 0 else "AWQ int4, a scale a row"
    )


def test_many_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in blocks of 8, the least that words allow."""
    monkeypatch.setattr("llama2gpu.checkpoints.gptq._BLOCK", 1)
    matrices = matrices_of(zeros=True)
    check(open_checkpoint(write_awq(tmp_path, matrices)), matrices)


def test_groups_that_have_no_packed_form(tmp_path: Path) -> None:
    small = matrices_of(group=16, zeros=True)
    folder = write_awq(tmp_path, small, told=awq_fields(16))
    assert all(isinstance(w, Dense) for w in check(open_checkpoint(folder), small).values())


def test_modules_that_are_not_converted(tmp_path: Path) -> None:
    """They are dense, whatever the configuration lists; a head may be quantized."""
    matrices = {n: m for n, m in matrices_of(zeros=True).items() if ".wv" not in n}
    matrices["output"] = random_matrix(96, 64, zeros=True)
    told = awq_fields(modules_to_not_convert=["v_proj"])
    checkpoint = open_checkpoint(write_awq(tmp_path, matrices, told=told))
    assert isinstance(check(checkpoint, matrices)["output"], Int4)
    wv = checkpoint.weight("layers.0.wv")
    assert isinstance(wv, Dense)
    assert torch.equal(wv.data, random_tensors(CONFIG, torch.float16)["layers.0.wv"])


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"version": "gemv"}, "AWQ's version 'gemv' is not supported: give one in gemm"),
        ({"version": "GEMV_fast"}, "AWQ's version 'GEMV_fast'"),
        ({"version": "marlin"}, "AWQ's version 'marlin'"),
        ({"version": "exllama"}, "AWQ's version 'exllama'"),
        ({"version": None, "format": "gemv"}, "AWQ's version 'gemv'"),
        ({"backend": "llm-awq"}, "AWQ's version 'llm-awq'"),
        ({"version": 4}, "version must be a string, not 4"),
        ({"bits": 8}, "a quantization to 8 bits is not supported: give one with 4$"),
        ({"bits": None}, "lacks bits"),
        ({"group_size": 0}, "group_size is 0"),
        ({"group_size": 64}, r"qzeros is int32 \[2, 8\], but .* \[1, 8\]"),
        ({"quant_method": "gptq"}, r"qweight is int32 \[64, 8\], but .* \[8, 64\]"),
    ],
)
def test_hostile_fields(tmp_path: Path, fields: dict[str, Any], told: str) -> None:
    with pytest.raises(CheckpointError, match=told) as error:
        open_checkpoint(set_fields(write_awq(tmp_path, matrices_of()), **fields))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("fields", [{"version": "GEMM"}, {"version": None}, {"format": "gemm"}])
def test_ways_to_say_gemm(tmp_path: Path, fields: dict[str, Any]) -> None:
    matrices = matrices_of(zeros=True)
    check(open_checkpoint(set_fields(write_awq(tmp_path, matrices), **fields)), matrices)


@pytest.mark.parametrize("part", ["qzeros", "scales", "qweight"])
def test_missing_parts(tmp_path: Path, part: str) -> None:
    folder = write_awq(tmp_path, matrices_of())
    tensors = load_file(folder / "model.safetensors")
    del tensors[f"{module_of('layers.1.w1')}.{part}"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks|holds the tensor"):
        open_checkpoint(folder)


def test_damaged_scales(tmp_path: Path) -> None:
    change = {f"{W1}.scales": torch.full((2, 96), float("nan")).half()}
    checkpoint = open_checkpoint(write_awq(tmp_path, matrices_of(), change=change))
    for read in (checkpoint.weight, checkpoint.read):
        with pytest.raises(CheckpointError, match="scales hold NaN or infinity"):
            read("layers.1.w1")

"""Quantized weights on the way to an Apple GPU, up to the kernels that PyTorch has there.

The stand-ins check what `Quantized.mm` of PyTorch checks and what its Metal kernels take for
granted, then compute by the same formula; that the kernels themselves are right is not shown.
"""

import pytest
import torch
from torch import Tensor

from llama2gpu.backends import torch_packed
from llama2gpu.backends.matrix import OrderedMatrix, TiledMatrix
from llama2gpu.backends.prepare import prepare_matrix
from llama2gpu.backends.torch_packed import Int4Matrix, Int8Matrix
from llama2gpu.build import build_model
from llama2gpu.checkpoints import RandomCheckpoint
from llama2gpu.config import Config
from llama2gpu.engine import Engine
from llama2gpu.quant.spec import parse_spec
from llama2gpu.quantizer import Outcome, RoundingQuantizer
from tests.backends.test_mps import Recorder, answer_all_ways, as_on_mps, has_mps_kernel
from tests.ops.forms import FORMS
from tests.ops.test_quantized import activations, check, exact, weight_of

CONFIG = Config(dim=128, hidden=160, layers=2, heads=4, kv_heads=2, head_dim=32, vocab=96,
                context=64)  # fmt: skip
REAL = (torch.float16, torch.bfloat16, torch.float32)


def pack(weight: Tensor, inner_tiles: int) -> Tensor:
    """`_convert_weight_to_int4pack`: even columns in the high nibbles come, low ones go."""
    rows, half = weight.shape
    assert weight.dtype == torch.uint8
    assert weight.is_contiguous()
    assert inner_tiles in (2, 4, 8)
    assert rows % 16 == 2 * half % (16 * inner_tiles) == 0
    swapped = (weight << 4 | weight >> 4).view(torch.int32)
    return swapped.view(rows // 8, 2 * half // (16 * inner_tiles), 32, inner_tiles // 2)


def int4_mm(x: Tensor, packed: Tensor, group: int, pairs: Tensor) -> Tensor:
    """`_weight_int4pack_mm`: the kernel reads scales and offsets as of the type of x."""
    (_, columns), rows = x.shape, 8 * packed.shape[0]
    assert packed.dtype == torch.int32
    assert packed.dim() == 4
    assert group in (32, 64, 128, 256)
    assert pairs.shape == (columns // group, rows, 2)
    assert x.dtype == pairs.dtype
    assert x.dtype in REAL
    assert all(tensor.is_contiguous() for tensor in (x, packed, pairs))
    nibbles = packed.view(torch.uint8).view(rows, -1)
    q = torch.stack((nibbles & 15, nibbles >> 4), -1).view(rows, columns // group, group)
    scales, offsets = pairs.transpose(0, 1).unbind(-1)
    values = q * scales.float()[..., None] + (offsets - 8 * scales).float()[..., None]
    return (x.float() @ values.view(rows, columns).T).to(x.dtype)


def int8_mm(x: Tensor, data: Tensor, scales: Tensor) -> Tensor:
    """`_weight_int8pack_mm`, in whole tiles of 32 rows and columns."""
    assert data.dtype == torch.int8
    assert data.shape[0] % 32 == data.shape[1] % 32 == 0
    assert scales.shape == (len(data),)
    assert x.dtype == scales.dtype
    assert x.dtype in REAL
    assert all(tensor.is_contiguous() for tensor in (x, data))
    return (x.float() @ data.float().T * scales.float()).to(x.dtype)


STAND_INS = {
    "_convert_weight_to_int4pack": pack,
    "_weight_int4pack_mm": int4_mm,
    "_weight_int8pack_mm": int8_mm,
}


@pytest.fixture(autouse=True)
def called(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Puts the stand-ins in place, and those of CUDA; gives the names of what was called."""
    names: set[str] = set()
    for name, body in STAND_INS.items():

        def stand_in(*arguments: object, _name: str = name, _body: object = body) -> object:
            names.add(_name)
            return _body(*arguments)  # type: ignore[operator]

        monkeypatch.setattr(torch, name, stand_in)
    monkeypatch.setattr(torch_packed, "_has_tinygemm", lambda device: True)
    return names


@pytest.mark.parametrize("name", STAND_INS)
def test_kernels_exist(name: str) -> None:
    assert has_mps_kernel(f"aten::{name}")


@pytest.mark.parametrize("dtype", ["fp16", "fp32", "bf16"])
@pytest.mark.parametrize(
    ("asked", "kernels"),
    [
        ("int8+head", {"_weight_int8pack_mm"}),
        ("int8:32+head", set()),
        ("int4:32+head", {"_weight_int4pack_mm", "_convert_weight_to_int4pack"}),
        ("int4+zeros", {"_weight_int4pack_mm", "_convert_weight_to_int4pack"}),
    ],
)
def test_every_op_exists(
    asked: str, kernels: set[str], dtype: str, called: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes: list[Outcome] = []
    quantizer = RoundingQuantizer(parse_spec(asked), CONFIG, outcomes.append)
    with as_on_mps(monkeypatch) as backend:
        checkpoint = RandomCheckpoint(CONFIG, torch.float32)
        model = build_model(checkpoint, backend, dtype, quantizer=quantizer)
        with Recorder() as recorder:
            answer_all_ways(Engine(model, chunk=8, page=16))
    assert recorder.missing == []
    assert called == kernels
    assert all(outcome.quantized for outcome in outcomes)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", REAL, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("kind", ["mps", "cuda"])
def test_products(kind: str, dtype: torch.dtype, form: str) -> None:
    """Whatever the kernels lack is multiplied in tiles, never rounded to what they have."""
    for rows, columns in ((352, 256), (344, 256), (128, 128)):
        weight = weight_of(rows, columns, form)
        matrix = prepare_matrix(weight, kind, False)
        for tokens in (1, 5, 16, 17, 40):
            x = activations(tokens, columns, dtype)
            found = matrix.linear(x.T.contiguous().T)
            assert found.dtype == dtype
            check("linear", dtype, found, exact(x, weight))


@pytest.mark.parametrize(
    ("form", "rows", "columns", "wanted"),
    [
        ("int8", 64, 128, Int8Matrix),
        ("int8", 344, 128, TiledMatrix),
        ("int8", 64, 136, TiledMatrix),
        ("int8-g32", 64, 128, TiledMatrix),
        ("int4-g32", 64, 128, Int4Matrix),
        ("int4-g32", 64, 160, TiledMatrix),
        ("int4-g64", 344, 128, TiledMatrix),
    ],
)
def test_which_matrices_fit(form: str, rows: int, columns: int, wanted: type) -> None:
    assert type(prepare_matrix(weight_of(rows, columns, form), "mps", False)) is wanted


def test_columns_in_another_order_keep_the_kernel() -> None:
    matrix = prepare_matrix(weight_of(64, 128, "int4-order"), "mps", False)
    assert isinstance(matrix, OrderedMatrix)
    assert isinstance(matrix.inner, Int4Matrix)


def test_packing_frees_the_original(called: set[str]) -> None:
    matrix = prepare_matrix(weight_of(64, 256, "int4-g32"), "cuda", False)
    assert isinstance(matrix, Int4Matrix)
    assert matrix.weight is not None
    before = matrix.nbytes
    matrix.linear(activations(2, 256, torch.float32))
    assert not called
    matrix.linear(activations(2, 256, torch.bfloat16))
    assert called == {"_weight_int4pack_mm", "_convert_weight_to_int4pack"}
    assert matrix.weight is None
    assert before <= matrix.nbytes <= before * 1.2

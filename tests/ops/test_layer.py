"""A decode step's layer in one call of the compiled kernels: the same as op by op, to the bit."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from llama2gpu.backends.base import Backend
from llama2gpu.backends.cpu_step import cpu_layer, cpu_step
from llama2gpu.backends.inputs import Inputs
from llama2gpu.backends.torch import TorchBackend
from llama2gpu.ops.cases import CASES, Case
from llama2gpu.quant import Dense
from llama2gpu.weights import LayerWeights
from tests.ops.forms import ARCHITECTURES, FORMS, fits, taking
from tests.ops.test_ops import CompiledBackend, every_dtype

CPU = torch.device("cpu")
LLAMA = Case("llama", cached=(70,), new=(1,), dim=256, heads=4, kv_heads=2, head_dim=64, hidden=384)
TAKEN = (
    LLAMA,
    Case("batched", cached=(3, 64, 0), new=(1, 1, 1), dim=128, heads=8, kv_heads=1, head_dim=32,
         hidden=128),
    *(case for case in CASES if case.name in ("decode", "batched decode")),
)  # fmt: skip
FITTING = [
    pytest.param(case, form, id=f"{case.name.replace(' ', '-')}-{form}")
    for case in TAKEN
    for form in ("dense", *(form for form in FORMS if form != "int4-order"))
    if form == "dense" or all(fits(form, columns) for columns in (case.dim, case.hidden))
]
ALL_WAYS = ("rows", *ARCHITECTURES)


@pytest.fixture(autouse=True)
def taken(way: str) -> Iterator[str]:
    with taking(way):
        yield way


def layer_of(inputs: Inputs, form: str, backend: Backend) -> LayerWeights:
    def prepared(op: str, matrix: torch.Tensor) -> object:
        weight = Dense(matrix) if form == "dense" else FORMS[form][1](matrix.float())
        return backend.prepare(weight, op)

    m = inputs.matrices
    return LayerWeights(
        inputs.norm_weight,
        prepared("qkv", m["qkv"]),
        prepared("project_add", m["project_add"]),
        inputs.norm_weight.flip(0),
        prepared("gate_up", m["gate_up"]),
        prepared("project_add", m["linear"].T.contiguous()),
    )


@every_dtype
@pytest.mark.parametrize("kv_dtype", [None, torch.int8], ids=["cache", "int8-cache"])
@pytest.mark.parametrize(("case", "form"), FITTING)
@pytest.mark.parametrize("way", ALL_WAYS)
def test_layer(
    case: Case, form: str, kv_dtype: torch.dtype | None, dtype: torch.dtype, way: str
) -> None:
    backend = CompiledBackend(CPU)
    inputs = Inputs(case, dtype, 5, kv_dtype)
    layer = layer_of(inputs, form, backend)
    arguments = inputs.arguments("qkv", backend)
    rope, batch, cache = (arguments[name] for name in ("rope", "batch", "cache"))
    other = inputs.arguments("qkv", backend)["cache"]
    step = cpu_step(batch, rope, dtype)
    found = cpu_layer(inputs.x, layer, 1e-5, step, cache)
    wanted = Backend.layer(backend, inputs.x, layer, 1e-5, rope, batch, other)
    assert found is not None
    assert torch.equal(found, wanted)
    for mine, theirs in zip(cache, other, strict=True):
        assert mine is theirs or torch.equal(mine, theirs)


@pytest.mark.parametrize("way", ["rows"])
def test_what_is_no_number_stays_none(way: str) -> None:
    backend = CompiledBackend(CPU)
    for wrong in (torch.nan, torch.inf):
        for kv_dtype in (None, torch.int8):
            inputs = Inputs(LLAMA, torch.float32, 5, kv_dtype)
            layer = layer_of(inputs, "int4-g32", backend)
            inputs.x[0, 7] = wrong
            a = inputs.arguments("qkv", backend)
            y = backend.layer(a["x"], layer, 1e-5, a["rope"], a["batch"], a["cache"])
            assert not y.isfinite().any()


@pytest.mark.parametrize("way", ["rows"])
def test_who_takes_a_layer(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.Tensor | None] = []

    def watched(*arguments: Any) -> torch.Tensor | None:
        calls.append(cpu_layer(*arguments))
        return calls[-1]

    monkeypatch.setattr("llama2gpu.backends.torch.cpu_layer", watched)

    def taken_by(backend: TorchBackend, case: Case, form: str = "int8") -> bool:
        inputs = Inputs(case, torch.float32, 5)
        a = inputs.arguments("qkv", backend)
        layer = layer_of(inputs, form, backend)
        calls.clear()
        backend.layer(a["x"], layer, 1e-5, a["rope"], a["batch"], a["cache"])
        return bool(calls) and calls[-1] is not None

    prefill = Case("prefill", cached=(0, 4), new=(0, 2), dim=256, heads=4, kv_heads=2,
                   head_dim=64, hidden=384)  # fmt: skip
    borrowing = TorchBackend(CPU)
    borrowing.borrowed = {"attend": TorchBackend(CPU)}
    assert taken_by(TorchBackend(CPU), LLAMA)
    assert not taken_by(TorchBackend(CPU), prefill)
    assert not taken_by(TorchBackend(CPU), LLAMA, "int4-order")
    assert not taken_by(borrowing, LLAMA)


@pytest.mark.parametrize("way", ["rows"])
def test_a_layer_that_does_not_fit(way: str) -> None:
    backend = CompiledBackend(CPU)
    inputs = Inputs(LLAMA, torch.float32, 5)
    layer = layer_of(inputs, "int8", backend)
    wrong = LayerWeights(*(layer.__dict__ | {"w_2": layer.w_o}).values())
    a = inputs.arguments("qkv", backend)
    step = cpu_step(a["batch"], a["rope"], torch.float32)
    with pytest.raises(AssertionError, match="don't fit"):
        cpu_layer(inputs.x, wrong, 1e-5, step, a["cache"])

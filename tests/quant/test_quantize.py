"""Every kind, group and method on easy and hard matrices, held to the definitions."""

import importlib
import math

import pytest
import torch

from llama2gpu.errors import RequestError
from llama2gpu.quant import Dense, Int4, Int8, Weight, int4, quantize, weighted_error
from llama2gpu.quant.spec import QuantSpec
from tests.quant.matrices import COLUMNS, HARD, ROWS, moments, output_error, random, with_zeros

INT8 = [QuantSpec("int8", group) for group in (None, 128, 64, 32)]
INT4 = [
    QuantSpec("int4", group, method, zero_points)
    for group in (128, 64, 32)
    for method in ("rtn", "hqq", "gptq", "awq")
    for zero_points in (False, True)
]


def group_of(spec: QuantSpec) -> int:
    group = spec.group_of([ROWS], COLUMNS)
    assert group is not None
    return group


def quantized(matrix: torch.Tensor, spec: QuantSpec) -> Weight:
    seen = moments() if spec.method in ("gptq", "awq") else None
    return quantize(matrix, spec, group_of(spec), seen)


def named(spec: QuantSpec) -> str:
    return f"{spec.kind}-{spec.method}-{spec.group}{'-zeros' * spec.zero_points}"


def grouped(weight: Int4 | Int8, matrix: torch.Tensor) -> torch.Tensor:
    return matrix.double().view(*weight.scales.shape, -1)


@pytest.mark.parametrize("matrix", HARD)
@pytest.mark.parametrize("spec", INT8, ids=named)
def test_int8_rounds_to_nearest(spec: QuantSpec, matrix: str) -> None:
    weights = HARD[matrix]()
    weight = quantized(weights, spec)
    assert isinstance(weight, Int8)
    assert (weight.group, weight.scales.dtype) == (group_of(spec), torch.float16)
    assert int(weight.data.min()) >= -127
    error = grouped(weight, weight.dequantize(torch.float64) - weights.double()).abs()
    room = 127 * 2.0**-9  # float16 may round a small scale, and so the end of the range, so far
    assert bool((error <= (0.5 + room) * weight.scales.double()[..., None]).all())
    expected = grouped(weight, weights).abs().amax(-1) / 127
    torch.testing.assert_close(weight.scales.double(), expected, rtol=2.0**-9, atol=0)


@pytest.mark.parametrize("matrix", HARD)
@pytest.mark.parametrize("spec", INT4, ids=named)
def test_int4_has_its_form(spec: QuantSpec, matrix: str) -> None:
    weight = quantized(HARD[matrix](), spec)
    assert isinstance(weight, Int4)
    assert (weight.shape, weight.group) == ((ROWS, COLUMNS), spec.group)
    assert weight.scales.dtype == torch.float16
    assert bool((weight.scales >= 0).all())
    assert weight.order is None
    assert (weight.zeros is not None) == spec.zero_points
    if weight.zeros is not None:
        assert weight.zeros.dtype == torch.uint8
        assert 1 <= int(weight.zeros.min()) <= int(weight.zeros.max()) <= 15


@pytest.mark.parametrize("matrix", HARD)
@pytest.mark.parametrize("spec", [s for s in INT4 if s.method != "gptq"], ids=named)
def test_int4_takes_the_nearest_value_of_the_stored_scale(spec: QuantSpec, matrix: str) -> None:
    weights = HARD[matrix]()
    weight = quantized(weights, spec)
    assert isinstance(weight, Int4)
    zeros = torch.tensor(8) if weight.zeros is None else weight.zeros
    scales = weight.scales.double()
    levels = (torch.arange(16) - zeros[..., None].double()) * scales[..., None]
    if weight.zeros is None:
        assert levels.shape[-1] == 16
    distances = (grouped(weight, weights)[..., None] - levels[:, :, None]).abs().amin(-1)
    error = grouped(weight, weight.dequantize(torch.float64) - weights.double()).abs()
    assert bool((error <= distances + 1e-5 * scales[..., None]).all())


@pytest.mark.parametrize("matrix", HARD)
@pytest.mark.parametrize("spec", [s for s in INT4 if s.method == "rtn"], ids=named)
def test_rtn_is_no_worse_than_the_whole_range(spec: QuantSpec, matrix: str) -> None:
    weights = HARD[matrix]()
    weight = quantized(weights, spec)
    assert isinstance(weight, Int4)
    groups = grouped(weight, weights)
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    if spec.zero_points:
        low = torch.minimum(low, -high / 14)
        scales = ((high - low) / 15).half().double()
        zeros = (low * -15 / (high - low)).nan_to_num(8).round().clamp(1, 15)
    else:
        scales = (torch.maximum(high, -low) / 7).half().double()
        zeros = torch.full_like(scales, 8)
    turned = torch.where(scales > 0, 1 / scales, 0)[..., None]
    q = (groups * turned + zeros[..., None]).round().clamp(0, 15).flatten(1)
    plain = int4(q, scales.half(), zeros)
    errors = [
        grouped(weight, w.dequantize(torch.float64) - weights.double()).square().sum(-1)
        for w in (weight, plain)
    ]
    assert bool((errors[0] <= errors[1] * (1 + 1e-5) + 1e-30).all())


@pytest.mark.parametrize("spec", INT8 + INT4, ids=named)
def test_zeros_come_back_exactly(spec: QuantSpec) -> None:
    back = quantized(with_zeros(), spec).dequantize(torch.float32)
    assert not back[3].any()
    assert spec.group is None or not back[5, :128].any()
    assert not quantized(torch.zeros(ROWS, COLUMNS), spec).dequantize(torch.float32).any()


@pytest.mark.parametrize("spec", [s for s in INT8 + INT4 if s.method != "gptq"], ids=named)
def test_constants_come_back_to_the_precision_of_the_scale(spec: QuantSpec) -> None:
    weights = HARD["constant"]()
    back = quantized(weights, spec).dequantize(torch.float32)
    torch.testing.assert_close(back, weights, rtol=2.0**-10, atol=0)


@pytest.mark.parametrize("scale", [1e-7, 3e7])
@pytest.mark.parametrize("spec", INT8 + INT4, ids=named)
def test_what_float16_scales_cannot_hold_stays_dense(spec: QuantSpec, scale: float) -> None:
    matrix = random(scale=scale)
    weight = quantized(matrix, spec)
    assert isinstance(weight, Dense)
    assert weight.data is matrix


@pytest.mark.parametrize("spec", [QuantSpec("int8"), QuantSpec("int4", 64)], ids=named)
@pytest.mark.parametrize("inside", [True, False])
def test_the_smallest_scale_is_2_to_the_minus_16(spec: QuantSpec, inside: bool) -> None:
    matrix = torch.full((ROWS, COLUMNS), 2.0**-16 * (127 if spec.kind == "int8" else 7))
    weight = quantized(matrix if inside else matrix * 0.99, spec)
    assert isinstance(weight, Dense) != inside


@pytest.mark.parametrize("size", [1e-4, 1e-5, 1e-6])
@pytest.mark.parametrize("spec", INT8 + INT4, ids=named)
def test_a_faint_row_costs_next_to_nothing(spec: QuantSpec, size: float) -> None:
    """It gets the smallest scale, and errs by half of that: little beside the other rows."""
    matrix = random()
    matrix[7] *= size / matrix[7].abs().amax()
    weight = quantized(matrix, spec)
    assert isinstance(weight, Int4 | Int8)
    errors = (weight.dequantize(torch.float64) - matrix.double()).square().mean(1)
    others = torch.cat([errors[:7], errors[8:]])
    assert bool((errors[7] < others / 10).all())


def test_a_faint_row_of_a_faint_matrix_makes_all_dense() -> None:
    matrix = random().clamp(-0.04, 0.04) * 2.0**-8
    matrix[7] = 1e-6
    assert isinstance(quantize(matrix, QuantSpec("int4", 32), 32), Dense)


def test_a_row_that_vanishes_beside_the_others_is_zero() -> None:
    matrix = random()
    matrix[7] = 1e-23
    weight = quantize(matrix, QuantSpec("int4", 128), 128)
    assert isinstance(weight, Int4)
    assert not weight.dequantize(torch.float32)[7].any()


def test_without_a_group_it_stays_dense() -> None:
    matrix = random()
    weight = quantize(matrix, QuantSpec("int4", 128), None)
    assert isinstance(weight, Dense)
    assert weight.data is matrix


@pytest.mark.parametrize("spec", [INT8[0], INT4[0], INT4[3], INT4[4]], ids=named)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_floating_type_is_taken(spec: QuantSpec, dtype: torch.dtype) -> None:
    matrix = random().to(dtype)
    a, b = quantized(matrix, spec), quantized(matrix.float(), spec)
    assert torch.equal(a.dequantize(torch.float32), b.dequantize(torch.float32))


@pytest.mark.parametrize("spec", [INT8[0], *INT4[:8]], ids=named)
def test_blocks_of_rows_change_nothing(spec: QuantSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = with_zeros()
    whole = quantized(matrix, spec).dequantize(torch.float32)
    module = importlib.import_module("llama2gpu.quant.quantize")
    for name in ("AT_A_TIME", "AT_A_TIME_MOMENTS"):
        monkeypatch.setattr(module, name, 5 * COLUMNS)
    parts = quantized(matrix, spec).dequantize(torch.float32)
    # the sums of products may differ in their last bits, and so may a rounding of gptq
    assert float((parts == whole).float().mean()) >= (0.99 if spec.method == "gptq" else 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("spec", [INT8[0], INT4[0], INT4[2], INT4[4]], ids=named)
def test_weights_that_are_not_finite_are_refused(spec: QuantSpec, bad: float) -> None:
    matrix = random()
    matrix[11, 200] = bad
    with pytest.raises(RequestError, match="NaN or infinity") as caught:
        quantized(matrix, spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_calibrated_methods_need_good_moments(method: str) -> None:
    spec = QuantSpec("int4", 128, method)
    with pytest.raises(RequestError, match=f"{method} needs calibration"):
        quantize(random(), spec, 128)
    spoiled = moments()
    spoiled[3, 4] = math.nan
    with pytest.raises(RequestError, match="moments hold NaN"):
        quantize(random(), spec, 128, spoiled)
    with pytest.raises(RequestError, match="the weights hold NaN"):
        quantize(random() * math.nan, spec, 128, spoiled)


def test_weighted_error_is_its_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("llama2gpu.quant.quantize")
    monkeypatch.setattr(module, "AT_A_TIME_MOMENTS", 5 * COLUMNS)
    matrix, seen = random(), moments()
    weight = quantize(matrix, QuantSpec("int4", 64), 64)
    error = weight.dequantize(torch.float64) - matrix.double()
    outputs = (output_error(error, seen).sum() / output_error(matrix, seen).sum()) ** 0.5
    assert weighted_error(matrix, weight, seen) == pytest.approx(float(outputs), rel=1e-5)
    plain = float(error.norm() / matrix.double().norm())
    assert weighted_error(matrix, weight) == pytest.approx(plain, rel=1e-5)
    assert weighted_error(matrix, Dense(matrix), seen) == 0.0
    assert weighted_error(torch.zeros(8, COLUMNS), Dense(torch.zeros(8, COLUMNS))) == 0.0

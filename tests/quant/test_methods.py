"""What the methods promise of each other, and GPTQ against its textbook form."""

import pytest
import torch

from llama2gpu.quant import Dense, Int4, awq_scale, quantize, weighted_error
from llama2gpu.quant.spec import QuantSpec
from tests.quant.matrices import COLUMNS, HARD, ROWS, moments, output_error, random

ZEROS = pytest.mark.parametrize("zero_points", [False, True], ids=["symmetric", "zeros"])
GROUP = pytest.mark.parametrize("group", [128, 32])
MATRIX = pytest.mark.parametrize("matrix", HARD)


def made(
    matrix: torch.Tensor, method: str, group: int, zeros: bool, seen: torch.Tensor | None
) -> Int4:
    weight = quantize(matrix, QuantSpec("int4", group, method, zeros), group, seen)
    assert isinstance(weight, Int4)
    return weight


def row_errors(weight: Int4, matrix: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    return output_error(weight.dequantize(torch.float64) - matrix.double(), seen)


@MATRIX
@ZEROS
@GROUP
def test_gptq_is_no_worse_than_rtn_in_any_row(matrix: str, group: int, zero_points: bool) -> None:
    weights, seen = HARD[matrix](), moments()
    ours, plain = (
        row_errors(made(weights, method, group, zero_points, seen), weights, seen)
        for method in ("gptq", "rtn")
    )
    assert bool((ours <= plain * (1 + 1e-4)).all())


@ZEROS
def test_gptq_is_much_better_on_correlated_inputs(zero_points: bool) -> None:
    weights, seen = random(), moments()
    ours = weighted_error(weights, made(weights, "gptq", 128, zero_points, seen), seen)
    plain = weighted_error(weights, made(weights, "rtn", 128, zero_points, None), seen)
    assert ours < 0.75 * plain


def textbook_gptq(start: Int4, matrix: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Optimal brain quantization in float64 on start's scales: a column at a time, no Cholesky."""
    left, hessian = matrix.double(), seen.double()
    hessian = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian))
    remaining = hessian.diagonal().argsort(descending=True).tolist()
    done = torch.zeros_like(left)
    while remaining:
        k, scales = remaining[0], start.scales[:, remaining[0] // start.group].double()
        inverse = torch.linalg.inv(hessian[remaining][:, remaining])[0]
        done[:, k] = (left[:, k] / scales).round().clamp(-8, 7) * scales
        error = (left[:, k] - done[:, k]) / inverse[0]
        left[:, remaining] -= torch.outer(error, inverse)
        remaining.pop(0)
    return done


def test_gptq_is_the_textbook_one() -> None:
    weights, seen = random(), moments()
    plain = made(weights, "rtn", 64, False, seen)
    expected = textbook_gptq(plain, weights, seen)
    ours = made(weights, "gptq", 64, False, seen)
    assert torch.equal(ours.scales, plain.scales)
    better = output_error(expected - weights, seen) < row_errors(plain, weights, seen)
    assert bool(better.all())
    alike = (ours.dequantize(torch.float64) - expected).abs() < 1e-9
    assert float(alike.float().mean()) > 0.97  # a near tie that falls otherwise moves what follows


def test_gptq_takes_dead_columns() -> None:
    weights, seen = random(), moments()
    seen[:, 10:20] = seen[10:20] = 0
    ours, plain = (made(weights, method, 128, False, seen) for method in ("gptq", "rtn"))
    a, b = (weight.dequantize(torch.float32)[:, 10:20] for weight in (ours, plain))
    assert torch.equal(a, b)
    assert weighted_error(weights, ours, seen) < weighted_error(weights, plain, seen)


@pytest.mark.parametrize("off_diagonal", [0.0, 100.0])
def test_gptq_falls_back_to_rtn_where_moments_are_no_moments(off_diagonal: float) -> None:
    seen = torch.full((COLUMNS, COLUMNS), off_diagonal).fill_diagonal_(1 if off_diagonal else 0)
    a, b = (made(random(), method, 128, True, seen) for method in ("gptq", "rtn"))
    assert torch.equal(a.dequantize(torch.float32), b.dequantize(torch.float32))


def test_gptq_takes_moments_of_a_single_token() -> None:
    weights, token = random(), torch.randn(COLUMNS, generator=torch.Generator().manual_seed(9))
    seen = torch.outer(token, token)
    ours, plain = (made(weights, method, 128, False, seen) for method in ("gptq", "rtn"))
    assert weighted_error(weights, ours, seen) < 0.2 * weighted_error(weights, plain, seen)


@MATRIX
@ZEROS
@GROUP
def test_hqq_is_no_worse_in_its_norm_in_any_group(
    matrix: str, group: int, zero_points: bool
) -> None:
    weights = HARD[matrix]()
    ours, plain = (
        (made(weights, method, group, zero_points, None).dequantize(torch.float64) - weights)
        .view(ROWS, -1, group)
        .abs()
        .pow(0.7)
        .sum(-1)
        for method in ("hqq", "rtn")
    )
    # errors below a millionth of a step count as that much
    assert bool((ours <= plain * (1 + 1e-3) + group * 1e-4 * weights.abs().max() ** 0.7).all())


@ZEROS
def test_hqq_is_better_with_outliers(zero_points: bool) -> None:
    weights = random(1) * random(2, scale=1.0)
    ours, plain = (
        (made(weights, method, 128, zero_points, None).dequantize(torch.float32) - weights)
        for method in ("hqq", "rtn")
    )
    assert float(ours.abs().pow(0.7).sum()) < 0.985 * float(plain.abs().pow(0.7).sum())


@ZEROS
def test_moments_choose_where_rtn_clips(zero_points: bool) -> None:
    weights = HARD["heavy_tailed"]()
    seen = torch.diag(moments().diagonal())
    ours, plain = (made(weights, "rtn", 128, zero_points, m) for m in (seen, None))
    a, b = (row_errors(weight, weights, seen) for weight in (ours, plain))
    assert bool((a <= b * (1 + 1e-5)).all())
    assert float(a.sum()) < 0.99 * float(b.sum())


def folded(matrix: torch.Tensor, spec: QuantSpec, group: int, seen: torch.Tensor) -> torch.Tensor:
    """The matrix that a model with AWQ's scale folded in computes with."""
    scale = awq_scale(matrix, spec, group, seen)
    assert scale.shape == (COLUMNS,)
    assert float(scale.log().mean()) == pytest.approx(0, abs=1e-4)
    weight = quantize(matrix * scale, spec, group, seen / torch.outer(scale, scale))
    return weight.dequantize(torch.float32) / scale


@MATRIX
@ZEROS
@GROUP
def test_awq_is_no_worse_than_rtn(matrix: str, group: int, zero_points: bool) -> None:
    weights, seen = HARD[matrix](), moments()
    spec = QuantSpec("int4", group, "awq", zero_points)
    ours = weighted_error(weights, Dense(folded(weights, spec, group, seen)), seen)
    plain = weighted_error(weights, made(weights, "rtn", group, zero_points, seen), seen)
    assert ours <= plain * (1 + 1e-4)


@ZEROS
def test_awq_protects_columns_of_large_inputs(zero_points: bool) -> None:
    weights, seen = random(), moments()
    spec = QuantSpec("int4", 128, "awq", zero_points)
    ours = weighted_error(weights, Dense(folded(weights, spec, 128, seen)), seen)
    plain = weighted_error(weights, made(weights, "rtn", 128, zero_points, seen), seen)
    assert ours < 0.95 * plain


def test_awq_checks_the_sample_against_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama2gpu.quant.awq.SAMPLE", 1)  # fits that one row and no other
    scale = awq_scale(random(), QuantSpec("int4", 128, "awq"), 128, torch.eye(COLUMNS))
    assert torch.equal(scale, torch.ones(COLUMNS))


def test_awq_scales_nothing_where_nothing_is_seen() -> None:
    seen = torch.zeros(COLUMNS, COLUMNS)
    scale = awq_scale(random(), QuantSpec("int4", 128, "awq"), 128, seen)
    assert torch.equal(scale, torch.ones(COLUMNS))

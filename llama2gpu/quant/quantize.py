"""A quantized weight from a matrix, by the method that was asked for; and how far it is off."""

import math
import sys
from collections.abc import Callable
from functools import partial

import torch
from torch.nn.functional import hardshrink

from llama2gpu.errors import RequestError
from llama2gpu.quant.gptq import Feedback, better_rows, compensate, feedback
from llama2gpu.quant.grid import Grid, inverse, is_half, least_scale, to_half
from llama2gpu.quant.hqq import fit
from llama2gpu.quant.rtn import clip_search, whole_range
from llama2gpu.quant.spec import CALIBRATED, QuantSpec
from llama2gpu.quant.weight import Dense, Int4, Int8, Weight, int4, join_rows

#: About how many weights are taken at a time: what bounds the temporaries, and keeps them near a
#: CPU's caches; a product with the moments wants more, and a GPU more still.
AT_A_TIME, AT_A_TIME_MOMENTS, AT_A_TIME_GPU = 1 << 20, 1 << 22, 1 << 26
#: Weights this small beside the largest are zeros: float32 sums would not tell.
NEGLIGIBLE = 2.0**-24


def quantize(
    matrix: torch.Tensor, spec: QuantSpec, group: int | None, moments: torch.Tensor | None = None
) -> Weight:
    """`matrix`, `[N, K]` of any floating type, as `spec` asks; scales are float16.

    group: what `spec.group_of` gave. moments: float32 `[K, K]`, the mean of x·xᵀ over the inputs of
    calibration; gptq and awq need it, int4's rtn weighs the columns' errors by its diagonal.
    "awq" is rtn so weighted, of a matrix that `awq_scale` has already scaled: pass
    `matrix * scale` and `moments / outer(scale, scale)`, and divide the inputs by the scale.

    The result is Dense, of the matrix itself, where the group is None or where float16 can't hold
    the scales of its groups; weights below 2^-24 of the largest are zeros. Raises `RequestError`
    for weights or moments that are not finite, and for a calibrated method without moments.
    """
    peak = _usable_peak(matrix, spec, moments)
    if group is None:
        return Dense(matrix)
    if moments is not None:
        moments = moments.to(matrix.device, torch.float32)
    levels = 127 if spec.kind == "int8" else 15 if spec.zero_points else 7
    convert = _converter(spec, group, moments, least_scale(peak / levels))
    parts = []
    for rows in row_blocks(matrix, AT_A_TIME_MOMENTS if spec.method == "gptq" else AT_A_TIME):
        part = convert(hardshrink(rows.float(), peak * NEGLIGIBLE))
        if part is None:
            return Dense(matrix)
        parts.append(part)
    return join_rows(parts)


def weighted_error(
    matrix: torch.Tensor, weight: Weight, moments: torch.Tensor | None = None
) -> float:
    """The relative error of the outputs: the root of tr(ΔW·H·ΔWᵀ) / tr(W·H·Wᵀ), H the moments.

    Without moments H is the identity: the relative error of the matrix in Frobenius norm.
    """
    if moments is not None:
        moments = moments.to(matrix.device, torch.float32)
    lost = total = 0.0
    start = 0
    for rows in row_blocks(matrix, AT_A_TIME_MOMENTS):
        part = weight.rows(slice(start, start + len(rows))).dequantize(torch.float32)
        lost += output_power(part - rows.float(), moments)
        total += output_power(rows.float(), moments)
        start += len(rows)
    return math.sqrt(lost / max(total, sys.float_info.min))


def output_power(rows: torch.Tensor, moments: torch.Tensor | None) -> float:
    """tr(W·H·Wᵀ), the outputs' mean square summed over float32 rows W `[n, K]`; H None is 1."""
    seen = rows if moments is None else rows @ moments
    return max(0.0, float((seen * rows).sum(dtype=torch.float64)))


def row_blocks(matrix: torch.Tensor, weights: int) -> tuple[torch.Tensor, ...]:
    """The matrix in blocks of rows, each of about so many weights on a CPU."""
    if matrix.device.type != "cpu":
        weights = AT_A_TIME_GPU
    rows = max(1, weights // matrix.shape[1])
    return tuple(matrix[start : start + rows] for start in range(0, len(matrix), rows))


def _usable_peak(matrix: torch.Tensor, spec: QuantSpec, moments: torch.Tensor | None) -> float:
    """The largest magnitude of a matrix that can be quantized so."""
    if spec.method in CALIBRATED and moments is None:
        raise RequestError(f"{spec.method} needs calibration data: pass some, or choose rtn or hqq")
    peak = checked_peak(matrix)
    if moments is not None and not math.isfinite(_peak(moments)):
        raise RequestError("the calibration moments hold NaN or infinity: use other texts")
    return peak


def checked_peak(tensor: torch.Tensor) -> float:
    """The largest magnitude of weights; raises `RequestError` where one is not finite."""
    if not math.isfinite(peak := _peak(tensor)):
        raise RequestError("the weights hold NaN or infinity: the checkpoint is damaged")
    return peak


def _peak(matrix: torch.Tensor) -> float:
    """The largest magnitude; NaN or infinity where the matrix holds one."""
    low, high = torch.aminmax(matrix)
    return float(torch.maximum(high, -low))


def _converter(
    spec: QuantSpec, group: int, moments: torch.Tensor | None, least: float
) -> Callable[[torch.Tensor], Weight | None]:
    """What makes float32 rows `[n, K]` a weight, or None where float16 can't hold a scale."""
    if spec.kind == "int8":
        return partial(_int8, group=group, least=least)
    if spec.method == "gptq" and moments is not None:
        return partial(
            _gptq, spec=spec, group=group, least=least, moments=moments, feed=feedback(moments)
        )
    if spec.method == "hqq" or moments is None:
        return partial(_int4, spec=spec, group=group, least=least)
    importance = moments.diagonal().view(-1, group)
    return partial(_int4, spec=spec, group=group, least=least, importance=importance)


def _int8(rows: torch.Tensor, group: int, least: float) -> Int8 | None:
    groups = rows.view(len(rows), -1, group)
    whole = torch.linalg.vector_norm(groups, torch.inf, dim=-1) / 127
    if not is_half(whole, least):
        return None
    scales = to_half(whole)
    data = (groups * inverse(scales)[..., None]).round_().clamp_(-127, 127)
    return Int8(data.to(torch.int8).view(rows.shape), scales.half())


def _int4(
    rows: torch.Tensor,
    spec: QuantSpec,
    group: int,
    least: float,
    importance: torch.Tensor | None = None,
) -> Int4 | None:
    groups = rows.view(len(rows), -1, group)
    grid = _search(groups, spec, least, importance)
    if grid is not None and spec.method == "hqq":
        grid = fit(groups, grid, spec.zero_points)
    return None if grid is None else _packed(grid.round(groups), grid, spec)


def _gptq(
    rows: torch.Tensor,
    spec: QuantSpec,
    group: int,
    least: float,
    moments: torch.Tensor,
    feed: Feedback | None,
) -> Int4 | None:
    groups = rows.view(len(rows), -1, group)
    grid = _search(groups, spec, least, moments.diagonal().view(-1, group))
    if grid is None:
        return None
    q = grid.round(groups)
    if feed is not None:
        q = better_rows(groups, grid, compensate(groups, grid, feed), q, moments)
    return _packed(q, grid, spec)


def _search(
    groups: torch.Tensor, spec: QuantSpec, least: float, importance: torch.Tensor | None
) -> Grid | None:
    whole = whole_range(groups, spec.zero_points)
    return clip_search(groups, whole, importance) if is_half(whole.scales, least) else None


def _packed(q: torch.Tensor, grid: Grid, spec: QuantSpec) -> Int4:
    zeros = grid.zeros if spec.zero_points else None
    return int4(q.flatten(1), grid.scales.half(), zeros)

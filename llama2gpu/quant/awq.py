"""AWQ (Lin et al., 2023): columns that matter most are scaled up before they are rounded."""

from collections.abc import Callable, Iterator

import torch

from llama2gpu.quant.quantize import AT_A_TIME_MOMENTS, output_power, quantize, row_blocks
from llama2gpu.quant.spec import QuantSpec
from llama2gpu.quant.weight import Dense

#: Exponents that are tried, 0 to 1.
STEPS = 20
#: Rows that stand for the matrix while the scale is looked for.
SAMPLE = 512
#: Smallest magnitude of a column that is believed, of the largest.
FAINTEST = 1e-4


def awq_scale(
    matrix: torch.Tensor,
    spec: QuantSpec,
    group: int,
    moments: torch.Tensor,
    constrain: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """The factor of each column, float32 `[K]`, with which `matrix` `[N, K]` rounds best to int4.

    It is the columns' root mean square input to a power α, or that over their weights' magnitude to
    the power 1 − α, normalized to a geometric mean of 1; α is the one of least output error
    tr(ΔW·H·ΔWᵀ), H the moments `[K, K]`, ΔW = Q(W·scale) / scale − W. The scale is 1 where none is
    better, so the error is never above rtn's. The inputs are to be divided by the scale, which
    whoever makes them can do beforehand: the norm, or the rows of the matrix before; `constrain`
    brings a scale into a form that they can.
    """
    moments = moments.to(matrix.device, torch.float32)
    sample = matrix[_sample(len(matrix)).to(matrix.device)]
    scales = _scales(sample, group, moments)
    if constrain is not None:
        scales = map(constrain, scales)
    best = min(scales, key=lambda s: _error(sample, spec, group, moments, s))
    ones = torch.ones_like(best)
    return min((ones, best), key=lambda s: _error(matrix, spec, group, moments, s))


def _sample(rows: int) -> torch.Tensor:
    """Indices of some rows, always the same: evenly spaced ones could all be of one kind."""
    return torch.randperm(rows, generator=torch.Generator().manual_seed(0))[:SAMPLE]


def _scales(sample: torch.Tensor, group: int, moments: torch.Tensor) -> Iterator[torch.Tensor]:
    """The scales to try."""
    inputs = _believed(moments.diagonal().sqrt())
    groups = sample.float().abs().view(len(sample), -1, group)
    peaks = groups.amax(-1, keepdim=True)
    weights = _believed(torch.where(peaks > 0, groups / peaks, 0).mean(0).flatten())
    for step in range(STEPS + 1):
        power = step / STEPS
        yield _normalized(inputs.log() * power)
        yield _normalized(inputs.log() * power - weights.log() * (1 - power))


def _believed(magnitudes: torch.Tensor) -> torch.Tensor:
    return magnitudes.clamp(min=max(FAINTEST * float(magnitudes.max()), 1e-30))


def _normalized(logs: torch.Tensor) -> torch.Tensor:
    return (logs - logs.mean()).exp()


def _error(
    matrix: torch.Tensor, spec: QuantSpec, group: int, moments: torch.Tensor, scale: torch.Tensor
) -> float:
    """tr(ΔW·H·ΔWᵀ) of the matrix scaled, rounded and scaled back; infinite where it stays dense."""
    seen = moments / torch.outer(scale, scale)
    total = 0.0
    for rows in row_blocks(matrix, AT_A_TIME_MOMENTS):
        weight = quantize(rows.float() * scale, spec, group, seen)
        if isinstance(weight, Dense):
            return float("inf")
        back = weight.dequantize(torch.float32) / scale
        total += output_power(back - rows.float(), moments)
    return total

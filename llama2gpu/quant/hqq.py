"""Half-quadratic quantization (Badri and Shaji, 2023): a fit that outliers do not pull."""

import torch

from llama2gpu.quant.grid import Grid, inverse, to_half

#: The norm of the error is Σ|e|^P: below 1, few large errors are better than many small ones.
P = 0.7
ROUNDS = 20
#: Strength of the quadratic term, in steps of the starting grid, and its growth a round.
BETA, GROWTH = 10.0, 1.01


def fit(groups: torch.Tensor, start: Grid, zero_points: bool) -> Grid:
    """The best grid on the way of `ROUNDS` half-quadratic rounds from `start`, for each group.

    A round takes the large errors aside by shrinkage, then fits zero point and scale to the rest by
    least squares; without `zero_points` the scale alone. groups: float32 `[n, G, group]`.
    """
    unit = inverse(start.scales)
    steps = groups * unit[..., None]
    grid = best = Grid(start.scales * unit, start.zeros)
    lowest = torch.full_like(unit, torch.inf)
    for turn in range(ROUNDS):
        q = grid.round(steps)
        error = steps - grid.values(q)
        size = error.abs().clamp_(min=1e-6)
        slope = size.pow(P - 1)
        loss = (size * slope).sum(-1)
        best = Grid(*(torch.where(loss < lowest, a, b) for a, b in zip(grid, best, strict=True)))
        lowest = torch.minimum(loss, lowest)
        large = (size - slope / (BETA * GROWTH**turn)).clamp_(min=0) * error.sign()
        grid = _least_squares(q, steps - large, grid, zero_points)
        grid = Grid(to_half(grid.scales * start.scales) * unit, grid.zeros)
    return Grid(to_half(best.scales * start.scales), best.zeros)


def _least_squares(q: torch.Tensor, target: torch.Tensor, grid: Grid, zero_points: bool) -> Grid:
    """The zero points at these scales, then the scales at those, that bring q closest to target."""
    zeros = grid.zeros
    if zero_points:
        offset = q - target * inverse(grid.scales)[..., None]
        zeros = offset.mean(-1).round().clamp(1, 15)
    levels = q - zeros[..., None]
    scales = (target * levels).sum(-1) / levels.square().sum(-1).clamp(min=1)
    return Grid(scales.clamp(min=0), zeros)

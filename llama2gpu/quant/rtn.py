"""Round to nearest, with each group clipped where its squared error is least."""

import torch

from llama2gpu.quant.grid import Grid, to_half
from llama2gpu.quant.weight import MIDDLE

#: How far the range of a group is tried; 7/8 of a symmetric one ends at −8 · scale.
SHRINK = (1.0, 0.95, 0.91, 0.875, 0.84, 0.8, 0.75, 0.7, 0.62, 0.54)


def whole_range(groups: torch.Tensor, zero_points: bool) -> Grid:
    """The finest grid that clips no weight of float32 `[n, G, group]`; its scales are unrounded."""
    low, high = torch.aminmax(groups, dim=-1)
    if not zero_points:
        scales = torch.maximum(high, -low) / 7
        return Grid(scales, torch.full_like(scales, MIDDLE))
    high = high.clamp(min=0)
    low = torch.minimum(low.clamp(max=0), high / -14)  # so that the zero point can be 1
    scales = (high - low) / 15
    zeros = torch.where(scales > 0, -low / scales, MIDDLE)
    return Grid(scales, zeros.round().clamp(1, 15))


def clip_search(groups: torch.Tensor, whole: Grid, importance: torch.Tensor | None = None) -> Grid:
    """The best of the `whole_range` and smaller ones, by each group's squared error.

    importance: `[G, group]`, the weight of each column's error, its mean squared input; this is
    AWQ's clipping (Lin et al., 2023). All columns count alike where there is none.
    """
    root = None if importance is None else importance.sqrt()
    scales, lowest = whole.scales, torch.full_like(whole.scales, torch.inf)
    for factor in SHRINK:
        tried = Grid(to_half(whole.scales * factor), whole.zeros)
        loss = _error(groups, tried, root)
        scales = torch.where(loss < lowest, tried.scales, scales)
        lowest = torch.minimum(loss, lowest)
    return Grid(scales, whole.zeros)


def _error(groups: torch.Tensor, grid: Grid, root: torch.Tensor | None) -> torch.Tensor:
    """Root of each group's squared error `[n, G]`."""
    place = grid.place(groups)
    error = place.round().clamp_(0, 15).sub_(place)
    if root is not None:
        error.mul_(root)
    lengths: torch.Tensor = torch.linalg.vector_norm(error, dim=-1)
    return lengths * grid.scales

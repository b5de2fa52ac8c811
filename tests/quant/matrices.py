"""Matrices that are easy and hard to quantize, and inputs to weigh them by."""

import torch

ROWS, COLUMNS = 24, 256


def random(seed: int = 0, scale: float = 0.02) -> torch.Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed)) * scale


def heavy_tailed() -> torch.Tensor:
    return random(1) / random(2, scale=1.0).abs().clamp(min=0.01)


def with_zeros() -> torch.Tensor:
    """Row 3 is zero, and so are the first 128 columns of row 5."""
    matrix = random(3)
    matrix[3] = 0
    matrix[5, :128] = 0
    return matrix


def constant() -> torch.Tensor:
    """Each row is one value; half of the rows are negative."""
    values = torch.linspace(0.01, 3, ROWS) * torch.tensor([1.0, -1.0]).repeat(ROWS // 2)
    return values[:, None].repeat(1, COLUMNS)


def one_sided() -> torch.Tensor:
    return random(4).abs() + 0.01


def large() -> torch.Tensor:
    """As large as fits: int4's scales come near float16's end."""
    return random(5).clamp(-0.04, 0.04) * 1e7


def small() -> torch.Tensor:
    """As small as fits: int8's scales lie below float16's normal numbers."""
    return random(6, scale=3e-3)


HARD = {
    maker.__name__: maker
    for maker in (random, heavy_tailed, with_zeros, constant, one_sided, large, small)
}


def moments(columns: int = COLUMNS, seed: int = 0) -> torch.Tensor:
    """Second moments of inputs that are correlated and differ in size, float32 `[K, K]`."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    mixing *= torch.linspace(0.02, 1, columns)[:, None]
    sizes = torch.randn(columns, generator=generator).exp()
    inputs = (torch.randn(4 * columns, columns, generator=generator) @ mixing) * sizes
    seen: torch.Tensor = inputs.T @ inputs / len(inputs)
    return seen


def output_error(error: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """e·H·eᵀ of each row, in float64."""
    wide = error.double()
    powers: torch.Tensor = (wide @ seen.double() * wide).sum(1)
    return powers

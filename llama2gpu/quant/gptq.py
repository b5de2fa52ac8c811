"""GPTQ (Frantar et al., 2022): each column's rounding error is made good by the columns after it.

Scales and zero points are fixed beforehand, on the matrix as it was, so columns can be taken in
descending order of their inputs' second moment and still be stored in their own.
"""

from typing import NamedTuple

import torch

from llama2gpu.quant.grid import Grid, inverse

#: Columns whose errors are passed on among themselves before the rest hears of them.
BLOCK = 128
#: What is added to the diagonal of the moments, of its mean: the first, and each further one on top
#: of those before where they do not do.
DAMPING = (0.01, 0.1, 1.0)


class Feedback(NamedTuple):
    """How errors are passed on: columns in `order` `[K]`, and H⁻¹ = UᵀU of them, U in `upper`."""

    order: torch.Tensor
    upper: torch.Tensor


def feedback(moments: torch.Tensor) -> Feedback | None:
    """The feedback for second moments, float32 `[K, K]`; None where no damping makes them regular.

    U comes of one factorization and one inverse: with the columns in ascending order H = LLᵀ, and
    both sides of L⁻¹ reversed are U of the descending order.
    """
    ascending = moments.diagonal().argsort()
    sorted_moments = moments[ascending][:, ascending]
    mean = moments.diagonal().mean()
    for damping in DAMPING:
        sorted_moments.diagonal().add_(damping * mean)
        lower, failed = torch.linalg.cholesky_ex(sorted_moments)
        if not failed:
            eye = torch.eye(len(lower), device=lower.device)
            upper = torch.linalg.solve_triangular(lower, eye, upper=False).flip(0, 1)
            return Feedback(ascending.flip(0), upper)
    return None


def compensate(groups: torch.Tensor, grid: Grid, feed: Feedback) -> torch.Tensor:
    """The q, float32 `[n, G, group]`, of weights alike, chosen column by column in that order."""
    rows, _, group = groups.shape
    left = groups.reshape(rows, -1).T[feed.order]  # [K, n], what is left to be rounded
    of_column = feed.order // group
    q = torch.empty_like(left)
    for start in range(0, len(left), BLOCK):
        now, later = slice(start, start + BLOCK), slice(start + BLOCK, None)
        scales, zeros = (part.T[of_column[now]] for part in grid)
        errors = _block(left[now], Grid(scales, zeros), feed.upper[now, now], q[now])
        left[later].addmm_(feed.upper[now, later].T, errors, alpha=-1)
    return torch.empty_like(q).index_copy_(0, feed.order, q).T.reshape(groups.shape)


def _block(left: torch.Tensor, grid: Grid, upper: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Round a block of columns `[B, n]` into q; its errors `[B, n]` in units of U's diagonal.

    grid holds a scale and a zero point for each weight here, `[B, n]`.
    """
    errors = torch.empty_like(left)
    turned, diagonal = inverse(grid.scales), upper.diagonal().tolist()
    for i, column in enumerate(left):
        torch.addcmul(grid.zeros[i], column, turned[i], out=q[i]).round_().clamp_(0, 15)
        value = (q[i] - grid.zeros[i]) * grid.scales[i]
        torch.sub(column, value, out=errors[i]).div_(diagonal[i])
        left[i + 1 :].addr_(upper[i, i + 1 :], errors[i], alpha=-1)
    return errors


def better_rows(
    groups: torch.Tensor, grid: Grid, q: torch.Tensor, other: torch.Tensor, moments: torch.Tensor
) -> torch.Tensor:
    """Of two roundings, each row from `q` where its output error is less, else from `other`.

    The error of a row is e·H·eᵀ, and the difference of two is (a − b)·H·(a + b)ᵀ.
    """
    a, b = ((grid.values(x) - groups).flatten(1) for x in (q, other))
    gain = ((b - a) @ moments * (b + a)).sum(1)
    return torch.where((gain > 0)[:, None, None], q, other)

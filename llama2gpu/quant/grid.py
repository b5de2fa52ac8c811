"""The values that the groups of a quantized matrix can take, while the best are looked for."""

from typing import NamedTuple

import torch

#: What a float16 scale must lie between, so that rounding it stays below a relative 2^-9.
SMALLEST, LARGEST = 2.0**-16, 65504.0


class Grid(NamedTuple):
    """Each int4 group's scale and zero point: q, 0 to 15, stands for `(q − zeros) · scales`.

    scales: float32 `[n, G]`, numbers that float16 has; 0 for a group of zeros. zeros: float32
    `[n, G]`, whole, 1 to 15. Groups of weights and of q are float32 `[n, G, group]`.
    """

    scales: torch.Tensor
    zeros: torch.Tensor

    def place(self, groups: torch.Tensor) -> torch.Tensor:
        """Where weights lie among the q, neither rounded nor clipped."""
        return torch.addcmul(self.zeros[..., None], groups, inverse(self.scales)[..., None])

    def round(self, groups: torch.Tensor) -> torch.Tensor:
        """The nearest q of each weight."""
        return self.place(groups).round_().clamp_(0, 15)

    def values(self, q: torch.Tensor) -> torch.Tensor:
        """What q stand for."""
        return (q - self.zeros[..., None]) * self.scales[..., None]


def inverse(scales: torch.Tensor) -> torch.Tensor:
    """1 / scale, and 0 where the scale is 0, so that a group of zeros needs no case of its own."""
    return torch.where(scales > 0, 1 / scales, 0)


def least_scale(coarsest: float) -> float:
    """The least scale that a group may ask for, in a matrix whose coarsest is about this one.

    A finer scale is raised to `SMALLEST`, which errs by half of that. Beside a coarsest group whose
    scale is 8 times as large, it is at most 1/64 of a squared error, so that any may be raised.
    """
    return 0.0 if coarsest >= 8 * SMALLEST else SMALLEST


def is_half(scales: torch.Tensor, least: float) -> bool:
    """Whether float16 can hold the scales: each is 0, or from `least` to `LARGEST`."""
    return bool(((scales == 0) | ((scales >= least) & (scales <= LARGEST))).all())


def to_half(scales: torch.Tensor) -> torch.Tensor:
    """Float32 scales rounded to what float16 holds well, `SMALLEST` at least; 0 stays 0."""
    rounded = scales.clamp(SMALLEST, LARGEST).half().float()
    return torch.where(scales > 0, rounded, 0)

"""A weight as a value: what checkpoints give, what a backend prepares."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Dense:
    """An unquantized matrix, `[rows, columns]`, float32, float16 or bfloat16."""

    data: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes that one full read of the matrix takes."""
        return self.data.nbytes


Weight = Dense

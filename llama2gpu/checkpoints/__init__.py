"""Checkpoint readers: one a format, all of them giving a `Config` and canonically named tensors."""

from llama2gpu.checkpoints.base import Checkpoint, TensorInfo, tensor_shapes
from llama2gpu.checkpoints.open import SHIPPED, open_checkpoint
from llama2gpu.checkpoints.random import RandomCheckpoint

__all__ = [
    "SHIPPED",
    "Checkpoint",
    "RandomCheckpoint",
    "TensorInfo",
    "open_checkpoint",
    "tensor_shapes",
]

"""A deterministic, endless source of short children's stories in simple English."""

from llama2gpu.training.stories.engine import generate

__all__ = ["generate"]

"""What a weight is: dense, or quantized."""

from llama2gpu.quant.weight import Dense, Weight

__all__ = ["Dense", "Weight"]

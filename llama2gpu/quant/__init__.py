"""What a weight is: dense, int8 or int4; and how a quantized one is made."""

from llama2gpu.quant.awq import awq_scale
from llama2gpu.quant.quantize import quantize, weighted_error
from llama2gpu.quant.spec import QuantSpec
from llama2gpu.quant.weight import Dense, Int4, Int8, Weight, int4, join_rows

__all__ = [
    "Dense",
    "Int4",
    "Int8",
    "QuantSpec",
    "Weight",
    "awq_scale",
    "int4",
    "join_rows",
    "quantize",
    "weighted_error",
]

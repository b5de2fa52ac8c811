"""Matrices as GGUF stores them: plain floats, or blocks of 32 columns with float16 scales.

Layouts: https://github.com/ggml-org/ggml, `ggml-quants.c`; rounding is the `gguf` package's.
"""

import math

import numpy as np
import torch

from llama2gpu.checkpoints.tally import as_int8, narrowed, refuse_range, squares
from llama2gpu.quant import Dense, Int8, Weight
from llama2gpu.quant.pack import unpack_int4

BLOCK = 32
FLOATS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
BLOCKS = ("Q8_0", "Q4_0", "Q4_1")
_DTYPES = {form: dtype for dtype, form in FLOATS.items()}


def own_form(weight: Weight) -> str | None:
    """The form that keeps the integers of a quantized matrix.

    None for a dense one, and for groups or an order of columns that blocks can't have.
    """
    if isinstance(weight, Dense) or weight.group % BLOCK:
        return None
    if isinstance(weight, Int8):
        return "Q8_0"
    if weight.order is not None:
        return None
    return "Q4_0" if weight.zeros is None else "Q4_1"


def nbytes(shape: tuple[int, ...], form: str) -> int:
    """Bytes of a tensor in a form."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    values, size = GGML_QUANT_SIZES[GGMLQuantizationType[form]]
    return math.prod(shape) // values * size


def encode(name: str, weight: Weight, form: str) -> tuple[np.ndarray, float, float]:
    """Rows of a matrix in a form: their bytes, the squares of the errors, and of the values.

    Integers are kept where `own_form` is the form, and rounded anew otherwise. Raises
    `RequestError`, in the `name` of the matrix, for weights that are no numbers, or too large.
    """
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    if form in _DTYPES:
        values = weight.data if isinstance(weight, Dense) else weight.dequantize(torch.float32)
        kept, lost = narrowed(name, values, _DTYPES[form])
        return kept.contiguous().view(torch.uint8).numpy(), lost, squares(values)
    weight = as_int8(weight) if form == "Q8_0" else weight
    kind, values = GGMLQuantizationType[form], weight.dequantize(torch.float32)
    with np.errstate(all="ignore"):
        data = _kept(weight) if own_form(weight) == form else quantize(values.numpy(), kind)
        lost = squares(torch.from_numpy(dequantize(data, kind)) - values)
    if not math.isfinite(lost):
        refuse_range(name, values, "float16 scales", "give --quant none")
    return data, lost, squares(values)


def _kept(weight: Weight) -> np.ndarray:
    """Blocks of the integers that a matrix has; only its scales are rounded, to float16."""
    assert not isinstance(weight, Dense)
    rows = weight.shape[0]
    repeats = weight.group // BLOCK
    scales = weight.scales.float()
    if isinstance(weight, Int8):
        values = weight.data.view(torch.uint8).view(rows, -1, BLOCK)
        return _blocks([scales], repeats, values)
    q = unpack_int4(weight.packed).view(rows, -1, 2, BLOCK // 2)
    values = q[:, :, 0] | q[:, :, 1] << 4
    if weight.zeros is None:
        return _blocks([scales], repeats, values)
    return _blocks([scales, -scales * weight.zeros], repeats, values)


def _blocks(numbers: list[torch.Tensor], repeats: int, values: torch.Tensor) -> np.ndarray:
    """uint8 `[N, bytes]`: for each block its numbers `[N, K / group]` in float16, then values."""
    halves = [n.half().repeat_interleave(repeats, 1)[..., None].view(torch.uint8) for n in numbers]
    joined: np.ndarray = torch.cat([*halves, values], 2).flatten(1).numpy()
    return joined

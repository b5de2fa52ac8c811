"""Which form of a matrix multiplies fastest on a device, of those that PyTorch and we have."""

from dataclasses import replace

from llama2gpu.backends.cpu_rows import cpu_matrix
from llama2gpu.backends.matrix import (
    DenseMatrix,
    Matrix,
    OrderedMatrix,
    TiledMatrix,
    gates_first,
)
from llama2gpu.backends.torch_packed import Int4Matrix, Int8Matrix
from llama2gpu.quant import Dense, Int4, Int8, Weight

#: Below so many weights a dense matrix is left to PyTorch on a CPU: it would gain little, and a
#: small model would wait for the compiler the first time.
SMALL = 1 << 20


def prepare_matrix(weight: Weight, kind: str, paired: bool) -> Matrix:
    """The matrix for a kind of device ("cpu", "cuda", "mps"), where `weight` lies already.

    paired: its rows are gate 0, up 0, gate 1, …
    """
    if isinstance(weight, Int4) and weight.order is not None:
        inner = prepare_matrix(replace(weight, order=None), kind, paired)
        return OrderedMatrix(inner, weight.order)
    rows, columns = weight.shape
    small = isinstance(weight, Dense) and rows * columns < SMALL
    if kind == "cpu" and not small and (found := cpu_matrix(weight, paired)) is not None:
        return found
    if paired:
        weight = gates_first(weight)
    if isinstance(weight, Dense):
        return DenseMatrix(weight.data.contiguous(), kind)
    if isinstance(weight, Int8):
        return Int8Matrix(weight, kind) if Int8Matrix.takes(weight, kind) else TiledMatrix(weight)
    return Int4Matrix(weight, kind) if Int4Matrix.takes(weight, kind) else TiledMatrix(weight)

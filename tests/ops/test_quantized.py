"""Ops on quantized weights against the reference in float64 on the same weights."""

import zlib
from collections.abc import Iterator
from functools import partial

import pytest
import torch

from llama2gpu.backends.base import Backend
from llama2gpu.backends.inputs import Inputs
from llama2gpu.backends.numpy import NumpyBackend
from llama2gpu.backends.prepare import prepare_matrix
from llama2gpu.backends.torch import TorchBackend
from llama2gpu.ops.cases import CASES, Case
from llama2gpu.quant import Weight
from tests.ops.forms import ARCHITECTURES, FORMS, WAYS, columns_of, fits, taking
from tests.ops.test_ops import DTYPES, agree
from tests.ops.test_ops import check as check_op

CPU = torch.device("cpu")
check = partial(check_op, quantized=True)
OPS = ("embed", "linear", "qkv", "project_add", "gate_up", "logits")
FITTING = [
    pytest.param(case, form, id=f"{case.name.replace(' ', '-')}-{form}")
    for case in CASES
    for form in FORMS
    if any(fits(form, columns_of(case, op)) for op in OPS)
]
LLAMA_LIKE = next(case for case in CASES if case.name == "llama-like")
#: 344 and 40 rows are no multiple of 16 and of 32, 96 columns none of 128.
SHAPES = ((344, 256), (64, 96), (40, 1408))
MATRICES = [
    pytest.param(*shape, form, id=f"{shape[0]}x{shape[1]}-{form}")
    for shape in SHAPES
    for form in FORMS
    if fits(form, shape[1])
]
#: Around each count of tokens at which another kernel takes over.
COUNTS = (0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 17)

every_way = pytest.mark.parametrize("way", WAYS)
every_matrix = pytest.mark.parametrize(("rows", "columns", "form"), MATRICES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


@pytest.fixture
def taken(way: str) -> Iterator[str]:
    with taking(way):
        yield way


def compare(case: Case, form: str, dtype: torch.dtype, backend: Backend) -> None:
    seed = zlib.crc32(f"{case.name} {form}".encode())
    inputs = Inputs(case, dtype, seed, quantized=FORMS[form][1])
    for op in OPS:
        if fits(form, columns_of(case, op)):
            agree(op, backend, inputs, quantized=True)


@every_dtype
@pytest.mark.parametrize(("case", "form"), FITTING)
@pytest.mark.parametrize("way", ["rows", "pytorch"])
def test_torch(taken: str, case: Case, form: str, dtype: torch.dtype) -> None:
    compare(case, form, dtype, TorchBackend(CPU))


@every_dtype
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("way", ARCHITECTURES)
def test_rows_for_other_processors(taken: str, form: str, dtype: torch.dtype) -> None:
    compare(LLAMA_LIKE, form, dtype, TorchBackend(CPU))


@pytest.mark.parametrize(("case", "form"), FITTING)
def test_numpy(case: Case, form: str) -> None:
    compare(case, form, torch.float32, NumpyBackend(CPU))


def weight_of(rows: int, columns: int, form: str) -> Weight:
    generator = torch.Generator().manual_seed(rows + columns)
    return FORMS[form][1](torch.randn(rows, columns, generator=generator) / columns**0.5)


def activations(tokens: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    drawn = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(tokens))
    return drawn.to(dtype)


def exact(x: torch.Tensor, weight: Weight) -> torch.Tensor:
    return x.double() @ weight.dequantize(torch.float64).T


@every_dtype
@every_matrix
@every_way
def test_every_count_of_tokens(
    taken: str, rows: int, columns: int, form: str, dtype: torch.dtype
) -> None:
    """One token beside others, alone, and in no order of memory: all near the exact product."""
    weight = weight_of(rows, columns, form)
    matrix, paired = (prepare_matrix(weight, "cpu", pair) for pair in (False, True))
    for tokens in COUNTS:
        x = activations(tokens, columns, dtype)
        wanted = exact(x, weight)
        check("linear", dtype, matrix.linear(x), wanted)
        check("linear", dtype, matrix.linear(x.T.contiguous().T), wanted)
        product = torch.nn.functional.silu(wanted[:, 0::2]) * wanted[:, 1::2]
        found = paired.gated(x)
        assert found.dtype == dtype
        check("gate_up", dtype, found, product)
    single = torch.cat([matrix.linear(row[None]) for row in x])
    check("linear", dtype, single, wanted)


@every_dtype
@every_matrix
@every_way
def test_outliers(taken: str, rows: int, columns: int, form: str, dtype: torch.dtype) -> None:
    """One wild activation costs its token no more than rounding does, and the others nothing."""
    weight = weight_of(rows, columns, form)
    matrix = prepare_matrix(weight, "cpu", False)
    for tokens in (1, 3, 8, 20):
        x = activations(tokens, columns, dtype)
        calm = matrix.linear(x)
        x[0, 5] = 1e4
        found = matrix.linear(x)
        check("linear", dtype, found[:1], exact(x[:1], weight))
        assert torch.equal(found[1:], calm[1:])


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
@every_dtype
@every_matrix
@every_way
def test_what_is_no_number(
    taken: str, rows: int, columns: int, form: str, dtype: torch.dtype, wrong: float
) -> None:
    """It reaches every output of its token that reads it, and no other token."""
    weight = weight_of(rows, columns, form)
    matrix = prepare_matrix(weight, "cpu", False)
    for tokens in (1, 2, 6, 20):
        for column in (0, columns - 1):
            x = activations(tokens, columns, dtype)
            x[tokens // 2, column] = wrong
            finite = matrix.linear(x).isfinite()
            reads = weight.dequantize(torch.float32)[:, column] != 0
            assert not finite[tokens // 2, reads].any()
            finite[tokens // 2] = True
            assert finite.all()


@every_matrix
@every_way
def test_next_to_nothing(taken: str, rows: int, columns: int, form: str) -> None:
    """Activations below any that a norm makes give no more than they could."""
    weight = weight_of(rows, columns, form)
    matrix = prepare_matrix(weight, "cpu", False)
    for size in (1e-37, 1e-20, 0.0):
        x = activations(2, columns, torch.bfloat16) * size
        assert float(matrix.linear(x).abs().max()) <= 10 * size

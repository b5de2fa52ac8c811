"""Every op of the Triton backend × case × type against the reference in float64.

Where no GPU is, `TRITON_INTERPRET=1 pytest tests/kernels` runs the kernels on the CPU.
"""

import zlib

import pytest
import torch

from llama2gpu.backends.base import MATRIX_OPS, OPS
from llama2gpu.backends.inputs import Inputs
from llama2gpu.backends.triton import TritonBackend
from llama2gpu.kernels.launch import INTERPRETED
from llama2gpu.ops.cases import CASES, Case
from tests.kernels.device import DEVICE, DTYPES
from tests.ops.forms import FITTING, FORMS, columns_of, fits
from tests.ops.test_ops import agree

pytestmark = pytest.mark.skipif(DEVICE is None, reason="no GPU, and TRITON_INTERPRET is not set")

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


@pytest.fixture
def backend() -> TritonBackend:
    assert DEVICE is not None
    return TritonBackend(DEVICE)


@every_dtype
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name.replace(" ", "-"))
@pytest.mark.parametrize("op", OPS)
def test_op(op: str, case: Case, dtype: torch.dtype, backend: TritonBackend) -> None:
    agree(op, backend, Inputs(case, dtype, zlib.crc32(f"{op} {case.name}".encode())))


@every_dtype
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name.replace(" ", "-"))
@pytest.mark.parametrize("op", ["attend", "attention", "write_kv"])
def test_int8_cache(op: str, case: Case, dtype: torch.dtype, backend: TritonBackend) -> None:
    seed = zlib.crc32(f"{op} {case.name}".encode())
    agree(op, backend, Inputs(case, dtype, seed, torch.int8))


@every_dtype
@pytest.mark.parametrize(("case", "form"), FITTING)
def test_quantized(case: Case, form: str, dtype: torch.dtype, backend: TritonBackend) -> None:
    seed = zlib.crc32(f"{case.name} {form}".encode())
    inputs = Inputs(case, dtype, seed, quantized=FORMS[form][1])
    for op in ("embed", *MATRIX_OPS):
        if fits(form, columns_of(case, op)):
            agree(op, backend, inputs, quantized=True)


@pytest.mark.skipif(not INTERPRETED, reason="the interpreter is not asked for")
def test_the_interpreter_says_so() -> None:
    ok, detail = TritonBackend.probe(torch.device("cpu"))
    assert ok
    assert "slowly" in detail

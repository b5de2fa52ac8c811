"""Every op of the Triton backend × case × type against the reference in float64.

Where no GPU is, `TRITON_INTERPRET=1 pytest tests/kernels` runs the kernels on the CPU.
"""

import zlib

import pytest
import torch

from llama2gpu.backends.base import OPS
from llama2gpu.backends.inputs import Inputs
from llama2gpu.backends.triton import TritonBackend
from llama2gpu.kernels.launch import INTERPRETED
from llama2gpu.ops.cases import CASES, Case
from tests.kernels.device import DEVICE, DTYPES
from tests.ops.forms import FORMS, columns_of, fits
from tests.ops.test_ops import agree

pytestmark = pytest.mark.skipif(DEVICE is None, reason="no GPU, and TRITON_INTERPRET is not set")

MATRIX_OPS = ("linear", "qkv", "project_add", "gate_up", "logits")
#: Few and many tokens of sequences of their own: from 65 on a matrix is dequantized.
BATCHES = (
    Case("3 tokens", cached=(2, 0, 17), new=(1, 1, 1), dim=128, heads=4, kv_heads=2, head_dim=32,
         hidden=96, vocab=260),
    Case("65 tokens", cached=(0,), new=(65,), dim=128, heads=2, kv_heads=2, head_dim=64,
         hidden=32, vocab=70),
)  # fmt: skip
FITTING = [
    pytest.param(case, form, id=f"{case.name.replace(' ', '-')}-{form}")
    for case in (*(c for c in CASES if c.name in ("decode", "llama-like", "wide heads")), *BATCHES)
    for form in FORMS
    if any(fits(form, columns_of(case, op)) for op in MATRIX_OPS)
]

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

"""Every op of the CuPy backend × case × type against the reference in float64, and whole models.

Its kernels run on the CPU, where a thread is a fiber.
"""

import zlib

import pytest
import torch

from llama2gpu.backends.base import MATRIX_OPS, OPS
from llama2gpu.backends.cupy import CupyBackend
from llama2gpu.backends.inputs import Inputs
from llama2gpu.ops.cases import CASES, Case
from tests.cuda.emulator import Emulator
from tests.ops.forms import FITTING, FORMS, columns_of, fits
from tests.ops.test_ops import agree, every_case, every_dtype

CPU = torch.device("cpu")


@pytest.fixture
def backend(emulator: Emulator) -> CupyBackend:
    return CupyBackend(CPU, emulator)


@every_dtype
@every_case
@pytest.mark.parametrize("op", OPS)
def test_op(op: str, case: Case, dtype: torch.dtype, backend: CupyBackend) -> None:
    agree(op, backend, Inputs(case, dtype, zlib.crc32(f"{op} {case.name}".encode())))


@every_dtype
@every_case
@pytest.mark.parametrize("op", ["attend", "attention", "write_kv"])
def test_int8_cache(op: str, case: Case, dtype: torch.dtype, backend: CupyBackend) -> None:
    seed = zlib.crc32(f"{op} {case.name}".encode())
    agree(op, backend, Inputs(case, dtype, seed, torch.int8))


@every_dtype
@pytest.mark.parametrize(("case", "form"), FITTING)
def test_quantized(case: Case, form: str, dtype: torch.dtype, backend: CupyBackend) -> None:
    seed = zlib.crc32(f"{case.name} {form}".encode())
    inputs = Inputs(case, dtype, seed, quantized=FORMS[form][1])
    for op in ("embed", *MATRIX_OPS):
        if fits(form, columns_of(case, op)):
            agree(op, backend, inputs, quantized=True)


@pytest.mark.parametrize("case", [c for c in CASES if c.name == "decode"], ids=lambda c: c.name)
@pytest.mark.parametrize("op", ["qkv", "gate_up", "project_add", "linear"])
@pytest.mark.parametrize("order", ["descending", 7])
def test_in_any_order(op: str, case: Case, order: "str | int", emulator: Emulator) -> None:
    """Threads that need one another wait for one another."""
    emulator.order = order  # type: ignore[assignment]
    agree(op, CupyBackend(CPU, emulator), Inputs(case, torch.float16, 3))

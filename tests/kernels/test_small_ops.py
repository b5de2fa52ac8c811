"""The small Triton ops against the reference: interpreted, or on a GPU where there is one."""

import pytest
import torch

from llama2gpu.kernels.embed import embed
from llama2gpu.kernels.norm import rms_norm
from llama2gpu.kernels.rope import rope, rope_write, write_kv
from llama2gpu.kernels.swiglu import silu_mul
from llama2gpu.ops.cases import Case
from tests.kernels.device import DTYPES, PLACE, needs_device
from tests.ops import small_ops as ops
from tests.ops.small_ops import every_cache, every_case, every_op, every_table, wide_rows

KERNELS = ops.Kernels(PLACE, embed, rms_norm, rope, silu_mul, write_kv, rope_write)

pytestmark = [needs_device, pytest.mark.usefixtures("_unwritten_is_nan")]
every_dtype = ops.every_dtype(*DTYPES)


@every_dtype
@every_case
@every_op
def test_op(op: str, case: Case, dtype: torch.dtype) -> None:
    ops.check_op(KERNELS, op, case, dtype)


@every_dtype
@every_case
def test_write_int8_cache(case: Case, dtype: torch.dtype) -> None:
    ops.check_int8_cache(KERNELS, case, dtype)


def test_vectors_of_an_int8_cache() -> None:
    ops.check_vectors_of_an_int8_cache(KERNELS)


def test_int8_cache_of_many_vectors() -> None:
    ops.check_int8_cache_of_many_vectors(KERNELS)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_is_no_number_stays_none() -> None:
    ops.check_what_is_no_number_stays_none(KERNELS)


@every_dtype
@every_cache
@every_case
def test_rope_write(case: Case, kv_dtype: torch.dtype | None, dtype: torch.dtype) -> None:
    ops.check_rope_write(KERNELS, case, kv_dtype, dtype)


@every_table
@every_case
def test_quantized_embedding(case: Case, kind: str) -> None:
    ops.check_quantized_embedding(KERNELS, case, kind)


@wide_rows
def test_norm_of_wide_rows(dim: int) -> None:
    ops.check_norm_of_wide_rows(KERNELS, dim)


def test_norm_of_strided_rows() -> None:
    ops.check_norm_of_strided_rows(KERNELS)


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_gates_of_any_size() -> None:
    ops.check_gates_of_any_size(KERNELS)

"""The small CUDA C kernels on a CPU, in several orders of threads and blocks."""

from functools import partial

import pytest
import torch

from llama2gpu.kernels.cuda import CudaLaunch
from llama2gpu.kernels.cuda_ops import embed, rms_norm, rope, rope_write, silu_mul, write_kv
from llama2gpu.ops.cases import Case
from llama2gpu.ops.paged import LayerCache
from llama2gpu.quant import Dense
from tests.cuda.emulator import GRID_LIMITS, EveryOrder
from tests.ops import small_ops as ops
from tests.ops.small_ops import (
    Kernels,
    every_cache,
    every_case,
    every_op,
    every_table,
    wide_rows,
)
from tests.ops.unwritten import make_empty_nan

every_dtype = ops.every_dtype(torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture
def kernels(every_order: EveryOrder, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    make_empty_nan(monkeypatch)
    run = every_order
    return Kernels(
        place=torch.device("cpu"),
        embed=partial(embed, run),
        rms_norm=partial(rms_norm, run),
        rope=partial(rope, run),
        silu_mul=partial(silu_mul, run),
        write_kv=partial(write_kv, run),
        rope_write=partial(rope_write, run),
    )


@every_dtype
@every_case
@every_op
def test_op(kernels: Kernels, op: str, case: Case, dtype: torch.dtype) -> None:
    ops.check_op(kernels, op, case, dtype)


@every_dtype
@every_case
def test_write_int8_cache(kernels: Kernels, case: Case, dtype: torch.dtype) -> None:
    ops.check_int8_cache(kernels, case, dtype)


def test_vectors_of_an_int8_cache(kernels: Kernels) -> None:
    ops.check_vectors_of_an_int8_cache(kernels)


def test_int8_cache_of_many_vectors(kernels: Kernels) -> None:
    ops.check_int8_cache_of_many_vectors(kernels)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_is_no_number_stays_none(kernels: Kernels) -> None:
    ops.check_what_is_no_number_stays_none(kernels)


@every_dtype
@every_cache
@every_case
def test_rope_write(
    kernels: Kernels, case: Case, kv_dtype: torch.dtype | None, dtype: torch.dtype
) -> None:
    ops.check_rope_write(kernels, case, kv_dtype, dtype)


@every_table
@every_case
def test_quantized_embedding(kernels: Kernels, case: Case, kind: str) -> None:
    ops.check_quantized_embedding(kernels, case, kind)


@wide_rows
def test_norm_of_wide_rows(kernels: Kernels, dim: int) -> None:
    ops.check_norm_of_wide_rows(kernels, dim)


def test_norm_of_strided_rows(kernels: Kernels) -> None:
    ops.check_norm_of_strided_rows(kernels)


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_gates_of_any_size(kernels: Kernels) -> None:
    ops.check_gates_of_any_size(kernels)


def test_many_tokens_fit_a_grid() -> None:
    """More than it has blocks along y; of a model of 70 billion parameters."""
    launches: list[CudaLaunch] = []

    def run(launch: CudaLaunch) -> None:
        launches.append(launch)

    tokens, dim, heads, kv_heads, head = 1 << 17, 8192, 64, 8, 128
    half = partial(torch.empty, dtype=torch.float16, device="meta")
    index = torch.empty(tokens, dtype=torch.int64, device="meta")
    angles = torch.empty(tokens, head // 2, device="meta")
    k, pages = half(tokens, kv_heads, head), half(tokens // 64, kv_heads, 64, head)
    embed(run, index, Dense(half(32000, dim)), torch.float16)
    rms_norm(run, half(tokens, dim), torch.empty(dim, device="meta"), 1e-5)
    silu_mul(run, half(tokens, 2 * 28672))
    rope(run, half(tokens, heads, head), angles, angles, index)
    write_kv(run, k, k, index, LayerCache(pages, pages))
    y = half(tokens, (heads + 2 * kv_heads) * head)
    rope_write(run, y, angles, angles, index, index, LayerCache(pages, pages))
    assert len(launches) == 6
    for launch in launches:
        assert all(0 < n <= most for n, most in zip(launch.grid, GRID_LIMITS, strict=True))
        assert all(abs(a) < 1 << 31 for a in launch.arguments if isinstance(a, int))

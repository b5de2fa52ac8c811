"""The static budget of the CUDA C kernels: what they compile to without a GPU, at 7B shapes."""

from functools import cache

import pytest

from llama2gpu.kernels.arch import EVERY_ARCH
from llama2gpu.kernels.cuda_compile import compile_binary, missing_compiler, supports
from llama2gpu.kernels.launch import INTERPRETED
from llama2gpu.measure.kernel_work import OPS, WEIGHTS, Work, works
from llama2gpu.measure.kernels import CUDA_C, Job, Row, inspect, record_cuda
from llama2gpu.measure.shapes import SHAPES

pytestmark = [
    pytest.mark.skipif(bool(missing_compiler()), reason=missing_compiler()),
    pytest.mark.skipif(INTERPRETED, reason="machine code is not the interpreter's"),
]

SHAPE = SHAPES["llama2-7b"]
STREAMING = ("qkv", "attention", "project_add", "gate_up", "logits")


@cache
def rows(op: str, arch: str, tokens: int) -> tuple[Row, ...]:
    found = works(SHAPE, [op], WEIGHTS, [tokens], 512)
    return tuple(row for work in found for row in inspect(Job(work, arch, CUDA_C)))


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90"])
@pytest.mark.parametrize("op", OPS)
def test_decode(op: str, arch: str) -> None:
    """No spills, loads of 16 bytes, no barrier in the loops; all fits."""
    for row in rows(op, arch, 1):
        where = f"{row.kernel}, {row.case}, {row.weight}"
        assert row.binary.spill_bytes == 0, where
        assert row.binary.shared_bytes <= row.binary.shared_limit, where
        if row.instr_per_weight is not None:
            assert row.binary.load_bits == 128, where
            assert row.binary.has_loop, where
            assert row.binary.barriers_in_loop == 0, where
    assert any(row.instr_per_weight for row in rows(op, arch, 1)) or op not in STREAMING


@pytest.mark.parametrize("tokens", [4, 128])
@pytest.mark.parametrize("arch", ["sm_75", "sm_90"])
@pytest.mark.parametrize("op", STREAMING)
def test_many_tokens(op: str, arch: str, tokens: int) -> None:
    for row in rows(op, arch, tokens):
        assert row.binary.spill_bytes == 0, f"{row.kernel}, {row.case}, {row.weight}"


@pytest.mark.parametrize("op", ["qkv", "project_add", "gate_up", "logits"])
def test_int4_takes_three_instructions_a_weight(op: str) -> None:
    found = [row.instr_per_weight for row in rows(op, "sm_90", 1) if row.weight == "int4"]
    assert found
    assert all(count is not None and count <= 3.0 for count in found)


def all_works() -> list[Work]:
    return list(works(SHAPE, OPS, WEIGHTS, [1, 128], 512))


@pytest.mark.parametrize("arch", [a.name for a in EVERY_ARCH.values() if a.is_cuda])
def test_every_kernel_compiles(arch: str) -> None:
    number = int(arch.removeprefix("sm_"))
    if not supports(number):
        pytest.skip(f"this NVRTC no longer knows {arch}")
    launches = {
        (launch.file, launch.kernel, launch.options): launch
        for work in all_works()
        for launch in record_cuda(work)
    }
    files = {(file, options): launch for (file, _, options), launch in launches.items()}
    assert len(launches) >= 20
    for launch in files.values():
        assert compile_binary(launch.file, launch.options, number).startswith(b"\x7fELF")

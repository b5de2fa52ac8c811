"""What the compiled kernels are held to, at Llama-2-7B's shapes; needs no GPU."""

from collections.abc import Sequence

import pytest

from llama2gpu.kernels.arch import ARCHS
from llama2gpu.kernels.launch import INTERPRETED
from llama2gpu.measure.kernel_work import OPS, WEIGHTS, works
from llama2gpu.measure.kernels import Job, Row, inspect, inspect_all
from llama2gpu.measure.shapes import SHAPES

pytestmark = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET is set: nothing compiles")

SHAPE = SHAPES["llama2-7b"]
MATRIX_OPS = ("qkv", "project_add", "gate_up", "draw", "logits", "linear")
#: Instructions for each int4 weight on sm_90; those with a norm do more.
INSTRUCTIONS = {"project_add": 3.0, "linear": 3.0} | dict.fromkeys(
    ("qkv", "gate_up", "draw", "logits"), 3.5
)


def rows_of(ops: Sequence[str], weights: Sequence[str], tokens: int, arch: str) -> list[Row]:
    """The kernels that read a matrix or the cache."""
    found = works(SHAPE, ops, weights, (tokens,), context=2048)
    every = [row for work in found for row in inspect(Job(work, arch))]
    return [row for row in every if row.instr_per_weight is not None]


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("op", MATRIX_OPS)
def test_one_token_times_a_matrix(op: str, weight: str, arch: str) -> None:
    rows = rows_of([op], [weight], 1, arch)
    assert len(rows) == (2 if op == "project_add" else 1)
    for row in rows:
        binary = row.binary
        assert binary.spill_bytes == 0, row
        assert binary.load_bits == 128, row
        assert binary.barriers_in_loop == 0, row
        assert binary.shared_bytes <= binary.shared_limit, row
        if weight == "int4" and arch == "sm_90":
            assert row.instr_per_weight is not None
            assert row.instr_per_weight <= INSTRUCTIONS[op], row


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("weight", ["dense", "int8"])
def test_attention_of_one_token(weight: str, arch: str) -> None:
    (row,) = rows_of(["attention"], [weight], 1, arch)
    assert row.binary.spill_bytes == 0, row
    assert row.binary.load_bits == 128, row
    assert row.binary.barriers_in_loop == 0, row


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("tokens", [1, 64])
def test_drawing_in_a_wide_head(tokens: int, weight: str, arch: str) -> None:
    """What thousands of programs leave for each other fits in registers."""
    (work,) = works(SHAPES["llama3-8b"], ["draw"], [weight], (tokens,), context=2048)
    (row,) = inspect(Job(work, arch))
    assert row.kernel == "_head_kernel"
    assert row.binary.spill_bytes == 0, row
    assert row.binary.load_bits == 128, row
    assert row.binary.shared_bytes <= row.binary.shared_limit, row


def test_all_compile_for_every_architecture() -> None:
    uses = (
        (OPS, WEIGHTS, 1),
        (OPS, ("int4",), 16),
        (("attention",), ("dense", "int8"), 16),
        (("attention",), ("dense", "int8"), 128),
        (("qkv", "linear", "gate_up"), ("int4",), 128),
    )
    found = [w for ops, weights, m in uses for w in works(SHAPE, ops, weights, (m,), context=2048)]
    rows = list(inspect_all([Job(work, arch) for work in found for arch in ARCHS]))
    assert {row.arch for row in rows} == {*ARCHS}
    assert {row.op for row in rows} == {*OPS}
    for row in rows:
        assert row.binary.shared_bytes <= row.binary.shared_limit, row

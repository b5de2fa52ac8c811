"""Costs against counts by hand, and errors against what they must notice."""

import pytest
import torch

from llama2gpu.backends.base import OPS
from llama2gpu.ops.cases import CASES, Case
from llama2gpu.ops.cost import cost
from llama2gpu.ops.tolerance import bound, error

LLAMA_7B = Case(
    "7b", cached=(511,), new=(1,), dim=4096, heads=32, kv_heads=32, head_dim=128, hidden=11008,
    vocab=32000,
)  # fmt: skip


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_every_op_has_a_cost(op: str, case: Case) -> None:
    narrow, wide = (cost(op, case, weight_bytes=w, activation_bytes=a) for w, a in ((1, 2), (4, 4)))
    assert 0 <= narrow.bytes <= wide.bytes
    assert narrow.flops == wide.flops >= 0
    assert case.tokens == 0 or narrow.bytes > 0


@pytest.mark.parametrize(
    ("op", "megabytes"),
    [("qkv", 100.7), ("project_add", 33.6), ("gate_up", 180.4), ("logits", 262.1)],
)
def test_one_token_of_7b_reads_its_matrices(op: str, megabytes: float) -> None:
    assert cost(op, LLAMA_7B).bytes / 1e6 == pytest.approx(megabytes, rel=0.005)


def test_attention_reads_the_cache_once() -> None:
    found = cost("attention", LLAMA_7B)
    assert found.bytes == 512 * 2 * 4096 * 2 + 2 * 4096 * 2
    assert found.flops == 4 * 512 * 4096


def test_int8_cache_is_read_with_its_scales() -> None:
    found = cost("attention", LLAMA_7B, cache_bytes=1 + 4 / 128)
    assert found.bytes == 512 * 2 * 32 * (128 + 4) + 2 * 4096 * 2
    assert found.flops == cost("attention", LLAMA_7B).flops
    for op, read in (("write_kv", 2 * 4096 * 2 + 8), ("qkv", cost("qkv", LLAMA_7B).bytes - 16384)):
        assert cost(op, LLAMA_7B, cache_bytes=1 + 4 / 128).bytes == read + 2 * 32 * (128 + 4)


def test_prompt_attends_to_half_its_square() -> None:
    prompt = Case("prompt", cached=(0,), new=(3,), heads=1, kv_heads=1, head_dim=8)
    assert cost("attend", prompt).flops == 4 * (1 + 2 + 3) * 8


def test_error_is_relative_to_the_larger_of_rms_and_value() -> None:
    reference = torch.tensor([3.0, 4.0, 0.0])  # rms √(25/3)
    out = torch.tensor([3.0, 4.4, 0.1])
    found = error(out, reference)
    assert found.largest == pytest.approx(0.1, rel=1e-5)
    assert found.rms == pytest.approx(
        ((0.1**2 + (0.1 / (25 / 3) ** 0.5) ** 2) / 3) ** 0.5, rel=1e-5
    )


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_no_number_is_no_match(wrong: float) -> None:
    found = error(torch.tensor([1.0, wrong]), torch.tensor([1.0, 1.0]))
    assert not found.largest <= bound("linear", torch.bfloat16).largest


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="against"):
        error(torch.zeros(2), torch.zeros(3))

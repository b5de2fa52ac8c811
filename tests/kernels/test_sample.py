"""Drawing on the device against the reference, and what readies the next step."""

from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from llama2gpu.kernels.advance import advance
from llama2gpu.kernels.launch import Plan, launch
from llama2gpu.kernels.sample import penalize, quotient, sample, uniform
from llama2gpu.kernels.truncate import find_floor
from llama2gpu.ops.cases import Case
from tests.kernels.device import PLACE, needs_device
from tests.ops import draws as ops
from tests.ops.advancing import (
    check_advance,
    check_advance_past_the_table,
    every_count,
    every_size,
)
from tests.ops.draws import (
    every_draw,
    every_kind,
    every_seed,
    every_variant,
    every_wrong,
    small_vocabularies,
    wide_vocabularies,
)
from tests.ops.small_ops import every_case

KERNELS = ops.Kernels(PLACE, sample, penalize, find_floor)

pytestmark = [needs_device, pytest.mark.usefixtures("_unwritten_is_nan")]


@every_variant
@every_case
def test_sample(case: Case, variant: str) -> None:
    ops.check_sample(KERNELS, case, variant)


@triton.jit
def _uniform_kernel(p_out: Any, p_seed: Any, p_draw: Any) -> None:
    o_v = tl.program_id(0) * 1024 + tl.arange(0, 1024)
    tl.store(p_out + o_v, uniform(tl.load(p_seed), tl.load(p_draw), o_v))


@every_seed
@every_draw
def test_noise_to_the_bit(seed: int, draw: int) -> None:
    out = torch.empty(2048, dtype=torch.float32, device=PLACE)
    p_seed, p_draw = (torch.tensor([x], device=PLACE) for x in (seed, draw))
    launch(_uniform_kernel, Plan((2,), {}), p_out=out, p_seed=p_seed, p_draw=p_draw)
    ops.check_noise(out, seed, draw)


@triton.jit
def _quotient_kernel(p_x: Any, p_y: Any, p_out: Any) -> None:
    o_x = tl.program_id(0) * 1024 + tl.arange(0, 1024)
    tl.store(p_out + o_x, quotient(tl.load(p_x + o_x), tl.load(p_y + o_x)))


def test_scores_over_temperatures_to_the_bit() -> None:
    """Rounded as division is, next to the middle of two numbers too."""
    random = torch.Generator().manual_seed(3)
    y = torch.rand(1 << 14, generator=random) * 10.0 ** torch.randint(
        -2, 3, (1 << 14,), generator=random
    )
    y[:4096] = 1 + torch.arange(4096) * 2.0**-23
    exact = torch.randn(1 << 14, generator=random).double()
    exact[:8192] = exact[:8192].float().double() * (1 + 2.0**-24)  # a quotient that is nearly one
    x = (y * exact).float()
    x[-3:] = torch.tensor([0.0, torch.inf, -torch.inf])
    out = torch.empty_like(x, device=PLACE).fill_(torch.nan)
    launch(_quotient_kernel, Plan((16,), {}), p_x=x.to(PLACE), p_y=y.to(PLACE), p_out=out)
    assert torch.equal(out.cpu(), x / y)


@every_variant
def test_penalties(variant: str) -> None:
    ops.check_penalties(KERNELS, variant)


@every_kind
def test_what_is_kept(kind: str, vocab: int) -> None:
    ops.check_what_is_kept(KERNELS, kind, vocab)


def test_greedy_rows_have_no_floor() -> None:
    ops.check_greedy_rows_have_no_floor(KERNELS)


@small_vocabularies
def test_small_vocabularies(vocab: int) -> None:
    ops.check_small_vocabulary(KERNELS, vocab)


@wide_vocabularies
def test_wide_vocabularies(vocab: int) -> None:
    ops.check_wide_vocabulary(KERNELS, vocab)


@pytest.mark.parametrize("vocab", [512, 2500])
def test_a_row_does_not_see_its_batch(vocab: int) -> None:
    ops.check_a_row_does_not_see_its_batch(KERNELS, vocab)


def test_the_first_of_equals() -> None:
    ops.check_the_first_of_equals(KERNELS)


def test_counters_are_left_at_zero() -> None:
    ops.check_counters_are_left_at_zero(KERNELS)


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:All-NaN")
@pytest.mark.parametrize("greedy", [True, False])
@every_wrong
def test_what_is_no_number_gives_none(wrong: float, greedy: bool) -> None:
    ops.check_what_is_no_number_gives_none(KERNELS, wrong, greedy)


@every_count
@every_size
def test_advance(rows: int, counted: bool) -> None:
    check_advance(advance, PLACE, rows, counted)


def test_advance_past_the_table() -> None:
    check_advance_past_the_table(advance, PLACE)

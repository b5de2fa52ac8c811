"""Drawing by CUDA C kernels on a CPU, in several orders of threads and blocks."""

from functools import partial

import pytest
import torch

from llama2gpu.kernels.cuda import CudaLaunch, source
from llama2gpu.kernels.cuda_ops import advance
from llama2gpu.kernels.cuda_sample import find_floor, penalize, sample
from llama2gpu.ops.cases import Case
from tests.cuda.emulator import EveryOrder
from tests.ops import draws as ops
from tests.ops.advancing import (
    check_advance,
    check_advance_past_the_table,
    every_count,
    every_size,
)
from tests.ops.draws import (
    CPU,
    Kernels,
    every_draw,
    every_kind,
    every_seed,
    every_variant,
    every_wrong,
    small_vocabularies,
    wide_vocabularies,
)
from tests.ops.small_ops import every_case
from tests.ops.unwritten import make_empty_nan

#: A kernel that leaves the noise's numbers.
NOISE = """
extern "C" __global__ void noise(const long long* seed, const long long* draw, float* y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    y[i] = uniform(*seed, *draw, i);
}
"""


@pytest.fixture
def kernels(every_order: EveryOrder, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    make_empty_nan(monkeypatch)
    run = every_order
    return Kernels(
        place=CPU,
        sample=partial(sample, run),
        penalize=partial(penalize, run),
        find_floor=partial(find_floor, run),
    )


@every_variant
@every_case
def test_sample(kernels: Kernels, case: Case, variant: str) -> None:
    ops.check_sample(kernels, case, variant)


@every_seed
@every_draw
def test_noise_to_the_bit(every_order: EveryOrder, seed: int, draw: int) -> None:
    found = torch.full((2048,), torch.nan)
    run = EveryOrder({"noise": source("sample") + NOISE})
    arguments = (torch.tensor([seed]), torch.tensor([draw]), found)
    run(CudaLaunch("noise", "noise", (8, 1, 1), 256, arguments))
    ops.check_noise(found, seed, draw)


@every_variant
def test_penalties(kernels: Kernels, variant: str) -> None:
    ops.check_penalties(kernels, variant)


@every_kind
def test_what_is_kept(kernels: Kernels, kind: str, vocab: int) -> None:
    ops.check_what_is_kept(kernels, kind, vocab)


def test_greedy_rows_have_no_floor(kernels: Kernels) -> None:
    ops.check_greedy_rows_have_no_floor(kernels)


@small_vocabularies
def test_small_vocabularies(kernels: Kernels, vocab: int) -> None:
    ops.check_small_vocabulary(kernels, vocab)


@wide_vocabularies
def test_wide_vocabularies(kernels: Kernels, vocab: int) -> None:
    ops.check_wide_vocabulary(kernels, vocab)


def test_many_rows(kernels: Kernels) -> None:
    logits = ops.scores_of("peaked", 256, 515)
    ops.agree(kernels, logits, ops.params_of(256, temperature=0.8, top_k=40, top_p=0.95))


@pytest.mark.parametrize("vocab", [512, 2500])
def test_a_row_does_not_see_its_batch(kernels: Kernels, vocab: int) -> None:
    ops.check_a_row_does_not_see_its_batch(kernels, vocab)


def test_the_first_of_equals(kernels: Kernels) -> None:
    ops.check_the_first_of_equals(kernels)


def test_counters_are_left_at_zero(kernels: Kernels) -> None:
    ops.check_counters_are_left_at_zero(kernels)


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:All-NaN")
@pytest.mark.parametrize("greedy", [True, False])
@every_wrong
def test_what_is_no_number_gives_none(kernels: Kernels, wrong: float, greedy: bool) -> None:
    ops.check_what_is_no_number_gives_none(kernels, wrong, greedy)


@every_count
@every_size
def test_advance(every_order: EveryOrder, rows: int, counted: bool) -> None:
    check_advance(partial(advance, every_order), CPU, rows, counted)


def test_advance_past_the_table(every_order: EveryOrder) -> None:
    check_advance_past_the_table(partial(advance, every_order), CPU)

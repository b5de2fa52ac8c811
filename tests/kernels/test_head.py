"""Drawing in the head against logits and `sample` after one another: interpreted, or on a GPU."""

import zlib
from dataclasses import replace
from operator import itemgetter
from typing import Any

import numpy as np
import pytest
import torch

from llama2gpu.backends.base import Norm
from llama2gpu.backends.inputs import Inputs
from llama2gpu.backends.numpy import NumpyBackend
from llama2gpu.backends.torch import TorchBackend
from llama2gpu.backends.triton import TritonBackend
from llama2gpu.kernels import head
from llama2gpu.kernels.launch import recording
from llama2gpu.kernels.packed import pack
from llama2gpu.kernels.tiling import Tiling
from llama2gpu.ops.cases import Case
from llama2gpu.ops.sample import Drawn, SampleParams
from llama2gpu.ops.tolerance import bound, error
from llama2gpu.quant import Dense
from tests.kernels.device import PLACE, needs_device
from tests.ops.draws import VARIANTS, changed, each, moved, params_of
from tests.ops.forms import FORMS

pytestmark = [needs_device, pytest.mark.usefixtures("_unwritten_is_nan")]

REFERENCE = NumpyBackend(torch.device("cpu"), np.float64)
EPS = 1e-5
PLAIN = params_of(1, PLACE, truncated=False)
GREEDY = params_of(1, PLACE, temperature=0.0, greedy=True)


class Example:
    """Hidden states, a head and parameters, and what the reference draws with them."""

    def __init__(self, rows: int, vocab: int, form: str, variant: str) -> None:
        case = Case(f"{rows} rows", cached=(3,) * rows, new=(1,) * rows, dim=128, vocab=vocab)
        quantized = FORMS[form][1] if form in FORMS else None
        seed = zlib.crc32(f"{rows} {vocab} {form} {variant}".encode())
        inputs = Inputs(case, torch.float32, seed, quantized=quantized)
        params = inputs.arguments("sample", REFERENCE)["params"]
        self.params = changed(params, VARIANTS[variant])
        self.arguments = inputs.arguments("logits", TritonBackend(PLACE))
        self.arguments["params"] = moved(self.params, PLACE)
        wide = inputs.arguments("logits", REFERENCE, wide=True)
        self.logits = REFERENCE.logits(**wide)
        self.tokens, self.logprobs = REFERENCE.sample(self.logits, self.params)


def names_of(backend: TritonBackend, arguments: dict[str, Any]) -> list[str]:
    """The kernels that a draw launches."""
    with recording() as launches:
        backend.draw(**arguments)
    return [launch.name for launch in launches]


def check(found: torch.Tensor, wanted: torch.Tensor, op: str) -> None:
    measured, limit = error(found.cpu(), wanted), bound(op, torch.float32)
    assert measured.largest <= limit.largest, measured
    assert measured.rms <= limit.rms, measured


@pytest.mark.parametrize("variant", ["plain", "plain greedy"])
@pytest.mark.parametrize("vocab", [260, 513])
@pytest.mark.parametrize("form", ["dense", "int8", "int4-g32", "int4-zeros"])
@pytest.mark.parametrize("rows", [1, 2, 5, 17])
def test_draw_is_logits_then_sample(rows: int, form: str, vocab: int, variant: str) -> None:
    """Rows with a temperature and without; the reference's tokens, and the same in two launches."""
    example, backend = Example(rows, vocab, form, variant), TritonBackend(PLACE)
    assert names_of(backend, example.arguments) == ["_head_kernel"]
    drawn = backend.draw(**example.arguments)
    assert drawn.tokens.tolist() == example.tokens.tolist()
    check(drawn.logits, example.logits, "logits")
    check(drawn.logprobs, example.logprobs, "sample")

    params = example.arguments.pop("params")
    torch.testing.assert_close(drawn.logits, backend.logits(**example.arguments))
    tokens, logprobs = backend.sample(drawn.logits, params)
    assert torch.equal(drawn.tokens, tokens)
    torch.testing.assert_close(drawn.logprobs, logprobs)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_drawn_in_which_way(variant: str) -> None:
    """Where more than noise is added to a logit, it takes more than one kernel."""
    example, backend = Example(5, 260, "dense", variant), TritonBackend(PLACE)
    names = names_of(backend, example.arguments)
    assert (names == ["_head_kernel"]) == (variant in ("plain", "plain greedy"))
    drawn = backend.draw(**example.arguments)
    assert drawn.tokens.tolist() == example.tokens.tolist()
    check(drawn.logprobs, example.logprobs, "sample")


@pytest.mark.parametrize(("rows", "form"), [(65, "dense"), (2, "int4-order")])
def test_what_the_kernel_does_not_take(rows: int, form: str) -> None:
    example, backend = Example(rows, 70, form, "plain"), TritonBackend(PLACE)
    assert "_head_kernel" not in names_of(backend, example.arguments)
    drawn = backend.draw(**example.arguments)
    assert drawn.tokens.tolist() == example.tokens.tolist()


def test_nor_where_an_op_is_borrowed() -> None:
    example, backend = Example(2, 70, "dense", "plain"), TritonBackend(PLACE)
    backend.borrowed = {"sample": TorchBackend(PLACE)}
    assert "_head_kernel" not in names_of(backend, example.arguments)


def drawn_by(x: torch.Tensor, weight: torch.Tensor, params: SampleParams, tiling: Tiling) -> Drawn:
    """Twice by the same counters, which are zeros after each."""
    matrix, norm = pack(Dense(weight.to(PLACE))), torch.ones(weight.shape[1], device=PLACE)
    plan = head.plan_head(matrix, len(x), tiling, params.greedy)
    counters = torch.zeros(head.count_counters(plan), dtype=torch.int32, device=PLACE)
    options: dict[str, Any] = {"norm": norm, "eps": EPS, "params": params, "counters": counters}
    first = Drawn(*head.head(x.to(PLACE), matrix, plan, **options))
    assert not counters.any()
    again = Drawn(*head.head(x.to(PLACE), matrix, plan, **options))
    assert not counters.any()
    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.logprobs.nan_to_num(), again.logprobs.nan_to_num())
    return first


@pytest.mark.parametrize("params", [PLAIN, GREEDY], ids=["drawn", "greedy"])
@pytest.mark.parametrize("vocab", [1, 7, 8, 9, 72, 250, 600])
def test_groups_of_programs(vocab: int, params: SampleParams) -> None:
    """One program, one group, a group that is not full; and every one of them can hold the best."""
    random = torch.Generator().manual_seed(vocab)
    weight, x = (torch.randn(n, 16, generator=random) for n in (vocab, 1))
    prepared = REFERENCE.prepare(Dense(weight.double()), "logits")
    logits = REFERENCE.logits(x.double(), Norm(torch.ones(16), EPS), prepared)
    at = (logits.argmax() - torch.arange(0, vocab, max(1, vocab // 4))) % vocab
    for shift in at.tolist():
        rolled = logits.roll(-shift, dims=1)
        drawn = drawn_by(x, weight.roll(-shift, dims=0), params, Tiling(1, 8, 16, 1))
        tokens, logprobs = REFERENCE.sample(rolled, moved(params, torch.device("cpu")))
        assert drawn.tokens.tolist() == tokens.tolist()
        check(drawn.logprobs, logprobs, "sample")


def test_blocks_of_tokens() -> None:
    """More tokens than a tile has."""
    random = torch.Generator().manual_seed(1)
    weight, x = (torch.randn(n, 32, generator=random) for n in (300, 37))
    params = params_of(37, PLACE, truncated=False)
    params = replace(params, seed=torch.arange(37, device=PLACE))
    drawn = drawn_by(x, weight, params, Tiling(16, 64, 32, 4))
    for s in (0, 15, 16, 36):
        own = slice(s, s + 1)
        own_params = each(params, itemgetter(own))
        one = drawn_by(x[own], weight, own_params, Tiling(1, 8, 32, 1))
        assert one.tokens == drawn.tokens[own]
        torch.testing.assert_close(one.logprobs, drawn.logprobs[own])


def test_the_first_of_equals() -> None:
    """Within a program, between programs of a group, and between groups."""
    x = torch.ones(1, 16)
    for places in ([0, 1], [6, 9], [3, 200], [130, 199], [199]):
        weight = torch.zeros(201, 16)
        weight[places] = 1.0
        for tiling in (Tiling(1, 8, 16, 1), Tiling(16, 64, 16, 4)):
            drawn = drawn_by(x, weight, GREEDY, tiling)
            assert drawn.tokens.tolist() == places[:1]
    assert drawn_by(x, torch.zeros(201, 16), GREEDY, Tiling(1, 8, 16, 1)).tokens.tolist() == [0]


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:All-NaN")
@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_what_is_no_number_gives_none(wrong: float, greedy: bool) -> None:
    """A token of the vocabulary all the same, as of `sample`."""
    backend = TritonBackend(PLACE)
    params = params_of(3, PLACE, temperature=0.0 if greedy else 1.0, greedy=greedy, truncated=False)
    x, weight = torch.ones(3, 16, device=PLACE), torch.ones(130, 16)
    x[1, 3] = wrong
    norm = Norm(torch.ones(16, device=PLACE), EPS)
    drawn = backend.draw(x, norm, backend.prepare(Dense(weight), "logits"), params)
    tokens, logprobs = backend.sample(drawn.logits, params)
    assert torch.equal(drawn.tokens, tokens)
    assert ((tokens >= 0) & (tokens < 130)).all()
    assert drawn.logprobs.isfinite().tolist() == [True, False, True]
    torch.testing.assert_close(drawn.logprobs, logprobs, equal_nan=True)

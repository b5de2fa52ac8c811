"""What drawing on a device is held to, whatever the kernels: the reference, and the definition."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from operator import itemgetter
from typing import Any

import numpy as np
import pytest
import torch

from llama2gpu.backends.inputs import Inputs
from llama2gpu.backends.numpy import NumpyBackend
from llama2gpu.backends.torch import TorchBackend
from llama2gpu.ops.cases import Case
from llama2gpu.ops.noise import uniform_words
from llama2gpu.ops.sample import SampleParams, penalize, truncate
from llama2gpu.ops.tolerance import bound, error

CPU = torch.device("cpu")
REFERENCE = NumpyBackend(CPU, np.float64)

UNTRUNCATED = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "truncated": False}
UNCOUNTED = {"generated": None, "prompted": None}
#: Fields that differ from what `Inputs` draws, by the flags that they switch off.
VARIANTS: dict[str, dict[str, Any]] = {
    "all": {},
    "untruncated": UNTRUNCATED,
    "greedy": {"temperature": 0.0, "greedy": True},
    "no bias": {"bias": None},
    "no penalties": UNCOUNTED,
    "logits alone": {"bias": None, **UNCOUNTED},
    "plain": {"bias": None, **UNCOUNTED, **UNTRUNCATED},
    "plain greedy": {"bias": None, **UNCOUNTED, "temperature": 0.0, "greedy": True},
}
#: top-k, top-p and min-p of a row: one truncation, two, and all three.
LIMITS = (
    *((0, 0.9, 0.0), (50, 1.0, 0.0), (3000, 1.0, 0.0), (1, 1.0, 0.0), ((1 << 32) + 1, 0.5, 0.0)),
    *((0, 1.0, 0.1), (0, 1.0, 1.0), (40, 0.8, 0.0), (40, 0.95, 0.02), (0, 1e-6, 0.0)),
    *((0, 1.0, 0.0), (0, 0.999, 0.001), (40, 1.0, 0.5), (40, 0.99, 0.5)),
)

small_vocabularies = pytest.mark.parametrize("vocab", [1, 7, 1030, 2051])
wide_vocabularies = pytest.mark.parametrize("vocab", [32000, 128256])
every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_seed = pytest.mark.parametrize("seed", [0, 1, 0x1234567890ABCDEF, (1 << 63) - 1])
every_draw = pytest.mark.parametrize("draw", [0, 7, 1 << 32, (5 << 40) + 3])
every_kind = pytest.mark.parametrize(
    ("kind", "vocab"),
    [
        *product(("flat", "peaked", "coarse", "equal", "forbidden"), (7, 1003, 8200)),
        ("flat", 32000),
    ],
)
#: Numbers that are none.
every_wrong = pytest.mark.parametrize("wrong", [torch.nan, -torch.nan, torch.inf])


@dataclass(frozen=True)
class Kernels:
    """Launchers of one kind, with the arguments that Triton's have; where their tensors lie."""

    place: torch.device
    sample: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    penalize: Callable[..., torch.Tensor | None]
    find_floor: Callable[..., torch.Tensor]


def params_of(rows: int, place: torch.device = CPU, **fields: Any) -> SampleParams:
    """The same for all rows, numbers spread over them; no row is truncated unless it says so."""
    kinds = {"top_k": torch.int64, "seed": torch.int64, "draw": torch.int64}
    plain = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 5, "draw": 2}
    plain |= {"repetition": 1.0, "presence": 0.0, "frequency": 0.0}
    numbers: dict[str, Any] = {
        name: torch.full((rows,), fields.pop(name, value), dtype=kinds.get(name, torch.float32))
        for name, value in plain.items()
    }
    return moved(SampleParams(**numbers, **fields), place)


def changed(params: SampleParams, fields: dict[str, Any]) -> SampleParams:
    """With other fields, numbers spread over the rows."""
    spread: dict[str, Any] = {
        name: torch.full_like(getattr(params, name), value)
        if isinstance(getattr(params, name), torch.Tensor) and value is not None
        else value
        for name, value in fields.items()
    }
    return replace(params, **spread)


def moved(params: SampleParams, device: torch.device) -> SampleParams:
    return each(params, lambda x: x.to(device))


def each(params: SampleParams, change: Callable[[torch.Tensor], torch.Tensor]) -> SampleParams:
    """With each of its tensors changed."""
    changes: dict[str, Any] = {k: change(v) for k, v in vars(params).items() if torch.is_tensor(v)}
    return replace(params, **changes)


def agree(kernels: Kernels, logits: torch.Tensor, params: SampleParams, **options: Any) -> None:
    """The reference's tokens, and its probabilities within the bound."""
    place = kernels.place
    tokens, logprobs = kernels.sample(logits.to(place), moved(params, place), **options)
    wanted, wanted_logprobs = REFERENCE.sample(logits.cpu(), moved(params, CPU))
    assert tokens.tolist() == wanted.tolist()
    measured, limit = error(logprobs.cpu(), wanted_logprobs), bound("sample", torch.float32)
    assert measured.largest <= limit.largest, measured
    assert measured.rms <= limit.rms, measured


def check_sample(kernels: Kernels, case: Case, variant: str) -> None:
    inputs = Inputs(case, torch.float32, zlib.crc32(f"{case.name} {variant}".encode()))
    arguments = inputs.arguments("sample", TorchBackend(kernels.place))
    agree(kernels, arguments["logits"], changed(arguments["params"], VARIANTS[variant]))


def check_noise(found: torch.Tensor, seed: int, draw: int) -> None:
    """The numbers of the first vocabulary indices, to the bit."""
    words = uniform_words(torch.tensor([seed]), torch.tensor([draw]), torch.arange(len(found)))
    assert torch.equal(found.cpu(), ((words >> 9).float() + 0.5) * 2.0**-23)


def check_penalties(kernels: Kernels, variant: str) -> None:
    case = Case("penalties", cached=(3,) * 6, new=(1,) * 6, vocab=1030)
    inputs = Inputs(case, torch.float32, zlib.crc32(variant.encode()))
    arguments = inputs.arguments("sample", TorchBackend(kernels.place))
    logits, params = arguments["logits"], changed(arguments["params"], VARIANTS[variant])
    found = kernels.penalize(logits, params)
    if params.bias is None and params.generated is None:
        assert found is None
        return
    assert found is not None
    torch.testing.assert_close(found, penalize(logits, params), rtol=1e-6, atol=1e-6)


def scores_of(kind: str, rows: int, vocab: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(zlib.crc32(f"{kind} {vocab}".encode()))
    scores = torch.randn(rows, vocab, generator=random)
    if kind == "peaked":
        scores = 4 * scores + 3
    if kind == "coarse":
        scores = (2 * scores).bfloat16().float()
    if kind == "equal":
        scores = torch.zeros_like(scores)
    if kind == "forbidden":
        scores[:, 1:][torch.rand(rows, vocab - 1, generator=random) < 0.7] = -torch.inf
    return scores


def kept_by_floor(kernels: Kernels, scores: torch.Tensor, params: SampleParams) -> torch.Tensor:
    bits = (scores + 0.0).view(torch.int32)
    keys = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    floor = kernels.find_floor(scores.to(kernels.place), moved(params, kernels.place))
    return keys >= floor.cpu()[:, None]


def check_what_is_kept(kernels: Kernels, kind: str, vocab: int) -> None:
    """The definition's tokens in float64, with each of the limits."""
    scores = scores_of(kind, len(LIMITS), vocab)
    top_k, top_p, min_p = (torch.tensor(x) for x in zip(*LIMITS, strict=True))
    params = params_of(len(LIMITS), temperature=0.8)
    params = replace(params, top_k=top_k, top_p=top_p, min_p=min_p)
    heated = scores.double() / params.temperature[:, None]
    wanted = truncate(heated, params) > -torch.inf
    kept = kept_by_floor(kernels, scores, params) & (scores > -torch.inf)
    assert kept.sum(dim=1).tolist() == wanted.sum(dim=1).tolist()
    assert torch.equal(kept, wanted)


def check_greedy_rows_have_no_floor(kernels: Kernels) -> None:
    params = params_of(1, temperature=0.0, top_k=1)
    assert kept_by_floor(kernels, scores_of("peaked", 1, 100), params).all()


def check_wide_vocabulary(kernels: Kernels, vocab: int) -> None:
    logits = scores_of("peaked", 1, vocab)
    agree(kernels, logits, params_of(1, temperature=0.8, top_p=0.95))
    agree(kernels, logits, params_of(1, truncated=False))
    agree(kernels, logits, params_of(1, temperature=0.0, greedy=True))


def check_small_vocabulary(kernels: Kernels, vocab: int) -> None:
    """Threads have no token, or one that is forbidden."""
    logits = scores_of("forbidden", 4, vocab)
    agree(kernels, logits, params_of(4, temperature=0.8, top_k=3, top_p=0.95))
    agree(kernels, logits, params_of(4, truncated=False))
    agree(kernels, logits, params_of(4, temperature=0.0, greedy=True))


def check_a_row_does_not_see_its_batch(kernels: Kernels, vocab: int) -> None:
    """Nor the blocks that many rows are cut into."""
    logits = scores_of("peaked", 9, vocab).to(kernels.place)
    params = params_of(9, kernels.place, temperature=0.9, top_p=0.9)
    together = kernels.sample(logits, params)
    for s in range(9):
        own = slice(s, s + 1)
        token, logprob = kernels.sample(logits[own], each(params, itemgetter(own)))
        assert token == together[0][own]
        torch.testing.assert_close(logprob, together[1][own])


def check_the_first_of_equals(kernels: Kernels) -> None:
    logits = torch.zeros(3, 3000)
    logits[0, [700, 2500, 2999]] = 5.0
    logits[1] = -0.0
    logits[1, 1500] = 0.0
    logits[2, :10] = -1.0
    params = params_of(3, kernels.place, temperature=0.0, greedy=True)
    tokens, logprobs = kernels.sample(logits.to(kernels.place), params)
    assert tokens.tolist() == [700, 0, 10]
    wanted = logits.double().log_softmax(dim=1)[torch.arange(3), tokens.cpu()]
    torch.testing.assert_close(logprobs.cpu().double(), wanted, rtol=1e-5, atol=0)


def check_counters_are_left_at_zero(kernels: Kernels) -> None:
    counters = torch.zeros(5, dtype=torch.int32, device=kernels.place)
    logits = scores_of("peaked", 3, 5000)
    for draw in range(3):
        agree(kernels, logits, params_of(3, draw=draw), counters=counters)
        assert not counters.any()


def check_what_is_no_number_gives_none(kernels: Kernels, wrong: float, greedy: bool) -> None:
    """A token of the vocabulary all the same: it is fed to the model before anybody looks."""
    logits = torch.zeros(3, 3000, device=kernels.place)
    logits[0, 7], logits[1] = wrong, wrong
    fields = {"temperature": 0.0 if greedy else 1.0, "top_k": 5, "top_p": 0.9, "min_p": 0.1}
    params = params_of(3, kernels.place, greedy=greedy, **fields)
    tokens, logprobs = kernels.sample(logits, params)
    assert ((tokens >= 0) & (tokens < 3000)).all()
    assert logprobs.isfinite().tolist() == [False, False, True]

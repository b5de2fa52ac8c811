"""Drawing on the device against the reference, and what readies the next step."""

import zlib
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from operator import itemgetter
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from llama2gpu.backends.inputs import Inputs
from llama2gpu.backends.numpy import NumpyBackend
from llama2gpu.backends.torch import TorchBackend
from llama2gpu.kernels.advance import advance
from llama2gpu.kernels.launch import INTERPRETED, Plan, launch
from llama2gpu.kernels.sample import sample, uniform
from llama2gpu.kernels.truncate import find_floor
from llama2gpu.ops.cases import CASES, Case
from llama2gpu.ops.noise import uniform_words
from llama2gpu.ops.sample import SampleParams, truncate
from llama2gpu.ops.tolerance import bound, error

GPU = torch.cuda.is_available() and not INTERPRETED
DEVICE = torch.device("cuda", 0) if GPU else torch.device("cpu")
REFERENCE = NumpyBackend(torch.device("cpu"), np.float64)

pytestmark = pytest.mark.skipif(
    not (GPU or INTERPRETED), reason="needs a GPU, or TRITON_INTERPRET=1 in the environment"
)
every_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name.replace(" ", "-"))

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


@pytest.fixture(autouse=True)
def _unwritten_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.empty` gives NaN, so an output that a kernel forgets to write shows."""
    plain = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        made: torch.Tensor = plain(*args, **kwargs)
        return made.fill_(torch.nan if made.is_floating_point() else -1)

    monkeypatch.setattr(torch, "empty", poisoned)


def params_of(rows: int, **fields: Any) -> SampleParams:
    """The same for all rows, numbers spread over them; no row is truncated unless it says so."""
    kinds = {"top_k": torch.int64, "seed": torch.int64, "draw": torch.int64}
    plain = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 5, "draw": 2}
    plain |= {"repetition": 1.0, "presence": 0.0, "frequency": 0.0}
    numbers: dict[str, Any] = {
        name: torch.full((rows,), fields.pop(name, value), dtype=kinds.get(name, torch.float32))
        for name, value in plain.items()
    }
    return moved(SampleParams(**numbers, **fields), DEVICE)


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


def agree(logits: torch.Tensor, params: SampleParams, **options: Any) -> None:
    """The reference's tokens, and its probabilities within the bound."""
    tokens, logprobs = sample(logits.to(DEVICE), moved(params, DEVICE), **options)
    cpu = torch.device("cpu")
    wanted, wanted_logprobs = REFERENCE.sample(logits.cpu(), moved(params, cpu))
    assert tokens.tolist() == wanted.tolist()
    measured, limit = error(logprobs.cpu(), wanted_logprobs), bound("sample", torch.float32)
    assert measured.largest <= limit.largest, measured
    assert measured.rms <= limit.rms, measured


@pytest.mark.parametrize("variant", VARIANTS)
@every_case
def test_sample(case: Case, variant: str) -> None:
    inputs = Inputs(case, torch.float32, zlib.crc32(f"{case.name} {variant}".encode()))
    arguments = inputs.arguments("sample", TorchBackend(DEVICE))
    agree(arguments["logits"], changed(arguments["params"], VARIANTS[variant]))


@triton.jit
def _uniform_kernel(p_out: Any, p_seed: Any, p_draw: Any) -> None:
    o_v = tl.program_id(0) * 1024 + tl.arange(0, 1024)
    tl.store(p_out + o_v, uniform(tl.load(p_seed), tl.load(p_draw), o_v))


@pytest.mark.parametrize("seed", [0, 1, 0x1234567890ABCDEF, (1 << 63) - 1])
@pytest.mark.parametrize("draw", [0, 7, 1 << 32, (5 << 40) + 3])
def test_noise_to_the_bit(seed: int, draw: int) -> None:
    out = torch.empty(2048, dtype=torch.float32, device=DEVICE)
    p_seed, p_draw = (torch.tensor([x], device=DEVICE) for x in (seed, draw))
    launch(_uniform_kernel, Plan((2,), {}), p_out=out, p_seed=p_seed, p_draw=p_draw)
    words = uniform_words(p_seed.cpu(), p_draw.cpu(), torch.arange(2048))
    assert torch.equal(out.cpu(), ((words >> 9).float() + 0.5) * 2.0**-23)


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


def kept_by_floor(scores: torch.Tensor, params: SampleParams) -> torch.Tensor:
    bits = (scores + 0.0).view(torch.int32)
    keys = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return keys >= find_floor(scores.to(DEVICE), moved(params, DEVICE)).cpu()[:, None]


@pytest.mark.parametrize(
    ("kind", "vocab"),
    [
        *product(("flat", "peaked", "coarse", "equal", "forbidden"), (7, 1003, 8200)),
        ("flat", 32000),
    ],
)
def test_what_is_kept(kind: str, vocab: int) -> None:
    """The definition's tokens in float64, with one truncation, two, and all three."""
    limits = [(0, 0.9, 0.0), (50, 1.0, 0.0), (3000, 1.0, 0.0), (1, 1.0, 0.0), (1 << 30, 0.5, 0.0)]
    limits += [(0, 1.0, 0.1), (0, 1.0, 1.0), (40, 0.8, 0.0), (40, 0.95, 0.02), (0, 1e-6, 0.0)]
    limits += [(0, 1.0, 0.0), (0, 0.999, 0.001), (40, 1.0, 0.5), (40, 0.99, 0.5)]
    scores = scores_of(kind, len(limits), vocab)
    params = params_of(len(limits), temperature=0.8)
    top_k, top_p, min_p = (torch.tensor(x) for x in zip(*limits, strict=True))
    params = replace(moved(params, torch.device("cpu")), top_k=top_k, top_p=top_p, min_p=min_p)
    heated = scores.double() / params.temperature[:, None]
    wanted = truncate(heated, params) > -torch.inf
    kept = kept_by_floor(scores, params) & (scores > -torch.inf)
    assert kept.sum(dim=1).tolist() == wanted.sum(dim=1).tolist()
    assert torch.equal(kept, wanted)


def test_greedy_rows_have_no_floor() -> None:
    scores = scores_of("peaked", 1, 100)
    assert kept_by_floor(scores, params_of(1, temperature=0.0, top_k=1)).all()


@pytest.mark.parametrize("vocab", [32000, 128256])
def test_wide_vocabularies(vocab: int) -> None:
    logits = scores_of("peaked", 1, vocab)
    agree(logits, params_of(1, temperature=0.8, top_p=0.95))
    agree(logits, params_of(1, truncated=False))
    agree(logits, params_of(1, temperature=0.0, greedy=True))


@pytest.mark.parametrize("vocab", [512, 2500])
def test_a_row_does_not_see_its_batch(vocab: int) -> None:
    """Nor the blocks that many rows are cut into."""
    logits = scores_of("peaked", 9, vocab).to(DEVICE)
    params = params_of(9, temperature=0.9, top_p=0.9)
    together = sample(logits, params)
    for s in range(9):
        own = slice(s, s + 1)
        token, logprob = sample(logits[own], each(params, itemgetter(own)))
        assert token == together[0][own]
        torch.testing.assert_close(logprob, together[1][own])


def test_the_first_of_equals() -> None:
    logits = torch.zeros(3, 3000)
    logits[0, [700, 2500, 2999]] = 5.0
    logits[1] = -0.0
    logits[1, 1500] = 0.0
    logits[2, :10] = -1.0
    tokens, logprobs = sample(logits.to(DEVICE), params_of(3, temperature=0.0, greedy=True))
    assert tokens.tolist() == [700, 0, 10]
    wanted = logits.double().log_softmax(dim=1)[torch.arange(3), tokens.cpu()]
    torch.testing.assert_close(logprobs.cpu().double(), wanted, rtol=1e-5, atol=0)


def test_counters_are_left_at_zero() -> None:
    counters = torch.zeros(5, dtype=torch.int32, device=DEVICE)
    logits = scores_of("peaked", 3, 5000)
    for draw in range(3):
        agree(logits, params_of(3, draw=draw), counters=counters)
        assert not counters.any()


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:All-NaN")
@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("wrong", [torch.nan, -torch.nan, torch.inf])
def test_what_is_no_number_gives_none(wrong: float, greedy: bool) -> None:
    """A token of the vocabulary all the same: it is fed to the model before anybody looks."""
    logits = torch.zeros(3, 3000, device=DEVICE)
    logits[0, 7], logits[1] = wrong, wrong
    temperature = 0.0 if greedy else 1.0
    params = params_of(3, temperature=temperature, top_k=5, top_p=0.9, min_p=0.1, greedy=greedy)
    tokens, logprobs = sample(logits, params)
    assert ((tokens >= 0) & (tokens < 3000)).all()
    assert logprobs.isfinite().tolist() == [False, False, True]


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 130])
def test_advance(rows: int, counted: bool) -> None:
    random = torch.Generator().manual_seed(rows)
    page, width, vocab = 16, 4, 100
    positions = torch.randint(page * width - 1, (rows,), generator=random)
    positions[0] = 2 * page - 1
    table = torch.randperm(rows * width, generator=random).int().view(rows, width)
    drawn = torch.randint(vocab, (rows,), generator=random)
    lengths, draws = (positions + 1).int(), torch.arange(rows) + (1 << 33)
    generated = torch.randint(3, (rows, vocab), generator=random, dtype=torch.int32)
    found = [x.clone().to(DEVICE) for x in (positions, lengths, draws, generated)]
    tokens, slots = (torch.zeros(rows, dtype=torch.int64, device=DEVICE) for _ in range(2))
    advance(
        drawn=drawn.to(DEVICE),
        tokens=tokens,
        positions=found[0],
        lengths=found[1],
        draws=found[2],
        slots=slots,
        block_table=table.to(DEVICE),
        page=page,
        generated=found[3] if counted else None,
    )
    after, every = positions + 1, torch.arange(rows)
    if counted:
        generated[every, drawn] += 1
    for out, wanted in zip(found, (after, lengths + 1, draws + 1, generated), strict=True):
        assert torch.equal(out.cpu(), wanted)
    assert torch.equal(tokens.cpu(), drawn)
    assert torch.equal(slots.cpu(), table[every, after // page].long() * page + after % page)


def test_advance_past_the_table() -> None:
    """A token that nobody will read is written to a page that the sequence has."""
    state = [torch.tensor([x], device=DEVICE) for x in (0, 31, 0)]
    tokens, positions, draws = state
    lengths = torch.tensor([32], dtype=torch.int32, device=DEVICE)
    slots, table = torch.zeros_like(tokens), torch.tensor([[3, 5]], dtype=torch.int32)
    advance(tokens.clone(), tokens, positions, lengths, draws, slots, table.to(DEVICE), 16)
    assert slots.tolist() == [5 * 16]

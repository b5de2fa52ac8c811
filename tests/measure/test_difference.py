"""Two backends compared: a planted fault is found where it is, and rounding is no fault."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llama2gpu.api import KV_DTYPES
from llama2gpu.backends.base import Backend, Batch, LayerCache
from llama2gpu.backends.numpy import NumpyBackend
from llama2gpu.backends.torch import TorchBackend
from llama2gpu.build import build_model
from llama2gpu.checkpoints import RandomCheckpoint
from llama2gpu.config import Config
from llama2gpu.engine import Engine
from llama2gpu.errors import BackendError, RequestError
from llama2gpu.measure.difference import Difference, cut, find_difference, read_ids
from llama2gpu.measure.model_pair import load_pair
from llama2gpu.measure.op_errors import limit_for, row_error
from llama2gpu.measure.op_walk import Place
from llama2gpu.measure.score import Window, compare_states, score, score_reference
from llama2gpu.model import Model
from llama2gpu.ops.tolerance import Bound, bound
from tests.measure.faults import Fault, Faulty, every, one

CPU = torch.device("cpu")
CONFIG = Config(dim=48, hidden=60, layers=3, heads=6, kv_heads=2, head_dim=8, vocab=61, context=96)
IDS = [(7 * n + n * n // 5) % 61 for n in range(70)]
IN_A_LAYER = [
    Place(1, "qkv", "q"),
    Place(1, "qkv", "keys"),
    Place(2, "qkv", "values"),
    Place(0, "attention"),
    Place(1, "project_add", "w_o"),
    Place(2, "gate_up"),
    Place(0, "project_add", "w_2"),
]
PLACES = [Place(None, "embed"), *IN_A_LAYER, Place(None, "logits")]
WITH_BOUND = [place for place in PLACES if place.op != "embed"]
every_place = pytest.mark.parametrize("place", PLACES, ids=lambda p: "-".join(map(str, p)))
bounded_place = pytest.mark.parametrize("place", WITH_BOUND, ids=lambda p: "-".join(map(str, p)))


def model_on(backend: Backend, dtype: torch.dtype = torch.float32) -> Model:
    return build_model(RandomCheckpoint(CONFIG, dtype), backend)


def compared(a: Backend, b: Backend | None = None, **how: Any) -> Difference:
    other = TorchBackend(CPU) if b is None else b
    return find_difference(model_on(a), model_on(other), IDS, **how)


def blamed(found: Difference) -> set[Place]:
    return {spot.place for spot in found.spots if spot.verdict != "agrees"}


@pytest.mark.parametrize("kv_dtype", [None, torch.int8], ids=["cache", "int8-cache"])
@every_place
def test_a_planted_fault_is_found_where_it_is(place: Place, kv_dtype: torch.dtype | None) -> None:
    if kv_dtype is not None and place.part in ("keys", "values"):
        pytest.skip("codes are spoilt in a test of their own")
    found = compared(Faulty(CPU, place), kv_dtype=kv_dtype)
    assert blamed(found) == {place}
    assert found.first is not None
    assert (found.first.phase, found.first.verdict) == ("prefill", "differs")
    assert {spot.phase for spot in found.spots if spot.place == place and spot.share > 1} == {
        "prefill", "decode", "chunks"
    }  # fmt: skip
    assert found.logits.divergence > 1e3 * max(found.noise.divergence, 1e-12)


@every_place
def test_the_trusted_one_may_be_wrong(place: Place) -> None:
    assert blamed(compared(NumpyBackend(CPU), Faulty(CPU, place))) == {place}


@pytest.mark.parametrize("kv_dtype", [None, torch.int8], ids=["cache", "int8-cache"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_silent_on_torch_and_numpy(dtype: torch.dtype, kv_dtype: torch.dtype | None) -> None:
    torch_, numpy = model_on(TorchBackend(CPU), dtype), model_on(NumpyBackend(CPU), dtype)
    for a, b in ((torch_, numpy), (numpy, torch_), (numpy, numpy)):
        found = find_difference(a, b, IDS, kv_dtype=kv_dtype)
        assert blamed(found) == set(), found.first
        assert found.tolerance == (torch.float32 if a is b else dtype)


@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
@pytest.mark.parametrize("quant", ["none", "int8", "int4", "int4:32:hqq+zeros+head"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_silent_on_the_shipped_model(dtype: str, quant: str, kv_dtype: str) -> None:
    pair = load_pair("torch", "numpy", device="cpu", dtype=dtype, quant=quant)
    kind, quantized = KV_DTYPES[kv_dtype], pair.quant is not None
    ids = read_ids(pair, tokens=48)
    found = find_difference(pair.a, pair.b, ids, kv_dtype=kind, quantized=quantized)
    assert blamed(found) == set(), found.first
    assert len(found.spots) == 3 * (2 + 4 * (7 + (kv_dtype == "auto")))
    assert found.logits.divergence < (1e-4 if dtype == "fp32" else 1e-2)
    assert found.logits.agreement > 0.9


@pytest.mark.parametrize(("fault", "measure"), [(one, "largest"), (every, "rms")])
@bounded_place
def test_just_below_and_just_above_the_tolerance(place: Place, fault: Any, measure: str) -> None:
    tolerance = getattr(bound(place.op, torch.float32), measure)
    clean = compared(Faulty(CPU))
    limits = {getattr(s.limit, measure) for s in clean.spots if s.place == place}
    assert limits == {tolerance}  # the noise is too small to count here
    assert blamed(compared(Faulty(CPU, place, fault(0.85 * tolerance)))) == set()
    assert blamed(compared(Faulty(CPU, place, fault(1.15 * tolerance)))) == {place}


def first_row(out: Tensor) -> None:
    out[0] += 1


def by_turns() -> Fault:
    """Every other walk goes wrong: that of a prompt is one call, as are its first chunks."""
    calls = iter(range(10**6))

    def moved(out: Tensor) -> None:
        if len(out) > 8 and next(calls) % 2:
            out += 1

    return moved


def no_number(out: Tensor) -> None:
    out[-1, 0] = torch.nan


@pytest.mark.parametrize("fault", [first_row, by_turns(), no_number])
@bounded_place
def test_a_fault_is_no_noise(place: Place, fault: Fault) -> None:
    """One that comes and goes, or depends on how tokens are cut, does not hide itself."""
    found = compared(Faulty(CPU, place, fault))
    assert blamed(found) == {place}
    assert json.dumps(found.fields(), allow_nan=False)


def test_only_where_tokens_come_one_by_one() -> None:
    def single(out: Tensor) -> None:
        if len(out) == 1:
            out *= 2

    found = compared(Faulty(CPU, Place(1, "gate_up"), single))
    assert {(s.place, s.phase) for s in found.spots if s.verdict == "differs"} == {
        (Place(1, "gate_up"), "decode")
    }


def test_only_in_other_chunks() -> None:
    def later(out: Tensor) -> None:
        if 8 < len(out) < 62:
            out *= 2

    found = compared(Faulty(CPU, Place(1, "attention"), later))
    assert {(s.place, s.phase) for s in found.spots if s.verdict == "differs"} == {
        (Place(1, "attention"), "chunks")
    }


def test_a_layer_in_one_call() -> None:
    found = compared(Faulty(CPU, Place(2, "layer")))
    assert blamed(found) == {Place(2, "layer")}
    assert "layer" not in {spot.place.op for spot in compared(Plain(CPU), Plain(CPU)).spots}


class Plain(NumpyBackend):
    """Leaves the whole layer to its ops."""


class Strays(TorchBackend):
    """Writes one slot too many, or one too few, or one code that is wrong."""

    def __init__(self, how: str) -> None:
        super().__init__(CPU)
        self.how = how

    def qkv(
        self, x: Tensor, norm: Any, weight: Any, rope: Any, batch: Batch, cache: LayerCache
    ) -> Tensor:
        before, last = cache.k.clone(), int(batch.slots[-1])
        q = super().qkv(x, norm, weight, rope, batch, cache)
        page, offset = divmod(last, cache.k.shape[2])
        if self.how == "one too few":
            cache.k[page, 0, offset] = before[page, 0, offset]
        elif self.how == "one too many":
            cache.k[-1, 0, -1, 0] = 0
        elif self.how == "two steps":
            code = cache.k[page, 0, offset, 1]
            cache.k[page, 0, offset, 1] = code + (2 if code < 0 else -2)
        elif cache.k_scale is not None:
            cache.k_scale[page, 0, offset] *= 1.01
        return q


@pytest.mark.parametrize(
    ("how", "kv_dtype"),
    [
        ("one too few", None),
        ("one too few", torch.int8),
        ("one too many", None),
        ("one too many", torch.int8),
        ("two steps", torch.int8),
        ("scale", torch.int8),
    ],
)
def test_what_is_written_to_the_cache(how: str, kv_dtype: torch.dtype | None) -> None:
    found = compared(Strays(how), kv_dtype=kv_dtype)
    assert blamed(found) == {Place(n, "qkv", "keys") for n in range(CONFIG.layers)}


def test_a_trusted_one_without_numbers() -> None:
    with pytest.raises(RequestError, match="gate_up in layer 1 gives what is no number on faulty"):
        compared(TorchBackend(CPU), Faulty(CPU, Place(1, "gate_up"), no_number))


@pytest.mark.parametrize("tokens", [2, 3, 4, 9, 17, 160])
def test_every_token_comes_once_in_both_ways(tokens: int) -> None:
    for chunks in cut(tokens):
        assert [n for start, count in chunks for n in range(start, start + count)] == [
            *range(tokens)
        ]
        assert all(count > 0 for _, count in chunks)
    whole, _ = cut(tokens)
    assert [count for _, count in whole[1:]] == [1] * min(8, tokens // 2)


@pytest.mark.parametrize(
    ("noise", "limit"),
    [
        ((0.0, 0.0), 1.0),
        ((0.2, 0.1), 1.0),
        ((0.5, 0.3), 2.0),
        ((0.3, 0.5), 2.0),
        ((7.0, 0.1), 1.0),  # one backend's alone is a fault
        ((0.5, 7.0), 2.0),
        ((7.0, 3.0), 12.0),
        ((float("inf"), 0.0), 1.0),
    ],
)
def test_limits(noise: Sequence[float], limit: float) -> None:
    a, b = (Bound(n, 2 * n) for n in noise)
    assert limit_for(Bound(1.0, 2.0), a, b) == Bound(limit, 2 * limit)


def test_a_large_row_hides_no_other() -> None:
    wanted = torch.ones(2, 4)
    wanted[0] *= 1e6
    out = wanted.clone()
    out[1, 2] += 0.5
    assert row_error(out, wanted).largest == 0.5
    assert row_error(torch.zeros(2, 4), torch.zeros(2, 4)) == Bound(0.0, 0.0)


def test_logits_as_eval_measures_them() -> None:
    a, b = model_on(Faulty(CPU, Place(1, "gate_up"))), model_on(TorchBackend(CPU))
    windows = [Window(IDS)]
    reference = score_reference(Engine(b), windows)
    scores = score(Engine(a), windows, reference)
    found = find_difference(a, b, IDS[:-1])
    assert found.logits.divergence == pytest.approx(scores.divergence, rel=1e-3)
    assert found.logits.agreement == pytest.approx(scores.agreement)
    assert found.logits.divergence_99 > found.logits.divergence
    alone, same = compare_states(b, reference.hidden[0], b, reference.hidden[0])
    assert alone.abs().max() < 1e-12
    assert same.all()


def test_progress_counts_up() -> None:
    told: list[tuple[int, int]] = []
    compared(TorchBackend(CPU), told=lambda done, total, what: told.append((done, total)))
    assert told == [(n, 7) for n in range(7)]


def test_texts_and_tokens(tmp_path: Path) -> None:
    pair = load_pair("torch", "torch", device="cpu")
    assert len(read_ids(pair)) == 160
    path = tmp_path / "text.txt"
    path.write_text("Lily and Tom")
    short = read_ids(pair, path)
    assert short == pair.tokenizer.encode("Lily and Tom")
    with pytest.raises(RequestError, match=f"the text has {len(short)} tokens, fewer than 99"):
        read_ids(pair, path, 99)
    with pytest.raises(RequestError, match="more than the 384 that can be compared"):
        read_ids(pair, tokens=385)
    with pytest.raises(RequestError, match="can't read"):
        read_ids(pair, tmp_path / "none.txt")
    with pytest.raises(BackendError, match="unknown backend 'nonsense'"):
        load_pair("torch", "nonsense", device="cpu")


def test_calibrated_weights_are_the_same_on_both(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("Once upon a time, there was a dog. " * 80)
    how: dict[str, Any] = {"device": "cpu", "dtype": "fp32", "calibration": path}
    pair = load_pair("torch", "numpy", quant="int4:64:gptq", **how)
    found = find_difference(pair.a, pair.b, read_ids(pair, tokens=20), quantized=True)
    assert blamed(found) == set()

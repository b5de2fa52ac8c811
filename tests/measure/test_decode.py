"""The measuring code on a tiny model with a clock that counts: what runs, and what is reported."""

import itertools
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llama2gpu.backends.base import Batch
from llama2gpu.config import Config
from llama2gpu.engine import Engine
from llama2gpu.measure import decode, shapes
from llama2gpu.measure.decode import measure, randomize
from llama2gpu.measure.memory import AnonymousPeak, peak_memory
from llama2gpu.measure.model_result import Case, ModelResult, Round
from llama2gpu.measure.results import read_results, write_results
from llama2gpu.measure.subject import Subject
from llama2gpu.model import Model

TINY = Config(dim=64, hidden=128, layers=2, heads=4, kv_heads=2, head_dim=16, vocab=99, context=64)
SUBJECT = Subject("tiny", device="cpu")


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Fixed peaks; holds the bytes of each reading."""
    read: list[int] = []

    def bandwidth(blocks: list[torch.Tensor], repeats: int) -> float:
        read.append(sum(block.nbytes for block in blocks))
        return 4e9

    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)
    monkeypatch.setattr(decode, "read_bandwidth", bandwidth)
    monkeypatch.setattr(decode, "matmul_peak", lambda device, dtype, repeats: 2e12)
    return read


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """New and cached tokens of each sequence, in every pass through a model."""
    seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    forward = Model.forward

    def spy(self: Model, tokens: torch.Tensor, batch: Batch, cache: Any) -> torch.Tensor:
        seen.append((batch.new_counts, batch.cached_counts))
        return forward(self, tokens, batch, cache)

    monkeypatch.setattr(Model, "forward", spy)
    return seen


def run(*cases: Case, repeats: int = 2, **how: Any) -> list[ModelResult]:
    """Measured with a clock on which every phase takes a second."""
    return measure(SUBJECT, cases, repeats, clock=itertools.count().__next__, **how)


def test_decode() -> None:
    (found,) = run(Case("decode", 8, 3, 4), repeats=3)
    assert len(found.rounds) == 3
    assert (found.dtype, found.backend) == ("bf16", "torch")
    assert found.rounds[0] == Round(24.0, 12.0, 4e9, 2e12)
    layers = TINY.parameters - 2 * TINY.vocab * TINY.dim - TINY.dim * 5
    assert found.weight_bytes == 2 * (layers + TINY.vocab * TINY.dim)
    token = 2 * TINY.layers * 2 * TINY.kv_heads * TINY.head_dim
    assert found.cache_bytes == 3 * (8 + 4 / 2) * token
    assert found.prompt_flops == 2 * layers
    # three sequences share one reading of the weights
    assert found.read_share == pytest.approx(4 * (found.weight_bytes + found.cache_bytes) / 4e9)
    assert found.matmul_share == pytest.approx(24 * found.prompt_flops / 2e12)
    assert (found.load_seconds, found.first_seconds) == (1, 1)
    assert found.machine["torch"] == torch.__version__


def test_a_small_cache_is_prefilled(steps: list[Any]) -> None:
    run(Case("decode", 8, 2, 3), repeats=1)
    once = [((8, 8), (8, 8)), *(((1, 1), (n, n)) for n in (9, 10, 11))]
    assert steps == 2 * once


def test_a_large_cache_is_filled_without_prefill(steps: list[Any]) -> None:
    (found,) = run(Case("decode", 300, 2, 2), repeats=1)
    assert steps == 2 * [((1, 1), (n, n)) for n in (300, 301, 302)]
    assert found.rounds == [Round(None, 4.0, 4e9, 2e12)]
    assert found.first_seconds is None


def test_depth_0_starts_from_one_token(steps: list[Any]) -> None:
    (found,) = run(Case("decode", 0, 1, 2), repeats=1)
    assert steps == 2 * [((1,), (n,)) for n in (1, 2, 3)]
    assert found.rounds[0].prefill_rate is None


def test_prefill_behind_a_cache(steps: list[Any]) -> None:
    (found,) = run(Case("prefill", 5, 2, 7), repeats=1)
    assert steps == 2 * [((7, 7), (12, 12))]
    assert found.rounds == [Round(14.0, None, 4e9, 2e12)]
    assert (found.prefill_seconds, found.compile_seconds) == (1, 0)


def test_compiling_is_what_the_first_prefill_takes_longer() -> None:
    times = iter([0, 1, 1, 6, 6, *range(10, 30)])  # the first prefill takes 5, later ones 1
    (found,) = measure(SUBJECT, [Case("prefill", 0, 1, 7)], 2, clock=times.__next__)
    assert (found.load_seconds, found.compile_seconds, found.prefill_seconds) == (1, 4, 1)


def test_each_case_is_measured() -> None:
    cases = [Case("decode", depth, batch, 2) for depth in (4, 700) for batch in (1, 2)]
    found = run(*cases, repeats=1)
    assert [(r.depth, r.batch) for r in found] == [(4, 1), (4, 2), (700, 1), (700, 2)]
    assert [r.rounds[0].decode_rate for r in found] == [2, 4, 2, 4]
    if sys.platform == "linux":
        peaks = [r.memory_bytes for r in found]
        assert None not in peaks
        assert peaks == sorted(peaks)  # type: ignore[type-var]


def test_the_read_peak_is_of_the_weights_themselves(limits: list[int]) -> None:
    (found,) = run(Case("decode", 2, 1, 2))
    assert limits == [found.weight_bytes] * 2


def test_the_smallest_parts_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """To begin with a row of scales takes longer than to read it, and makes the roof too low."""
    monkeypatch.setitem(shapes.SHAPES, "tiny", replace(TINY, vocab=2999))
    engine = Engine(replace(SUBJECT, quant="int8").open(8))
    read = [block.nbytes for block in decode._blocks(engine)]
    assert (len(read), min(read)) == (4 * TINY.layers + 1, TINY.dim**2)
    assert sum(read) > 0.99 * engine.model.weights.nbytes


def test_a_peer_is_asked_after_each_round() -> None:
    rates = iter([(1.0, 2.0), (3.0, 4.0)])
    (found,) = run(Case("decode", 8, 1, 4), peer=("another", lambda: next(rates)))
    assert found.peer == "another"
    assert found.values("peer_prefill_rate") == [1, 3]
    assert found.peer_share("decode_rate") == pytest.approx((4 / 2 + 4 / 4) / 2)


def test_no_cached_number_is_zero() -> None:
    engine = Engine(SUBJECT.open(0), kv_dtype=None)
    decode.answer(engine, Case("decode", 8, 1, 2), 0, itertools.count().__next__)
    randomize(engine)
    for part in engine.cache.parts:
        assert part.numel() > 0
        assert part.isfinite().all()
        assert (part != 0).float().mean() > 0.99


def test_mean_and_deviation() -> None:
    (found,) = run(Case("decode", 8, 1, 4))
    found.rounds[:] = [Round(None, rate, 1.0, 1.0) for rate in (10.0, 14.0)]
    assert found.mean("decode_rate") == pytest.approx((12.0, math.sqrt(8)))
    assert found.values("prefill_rate") == []


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    found = run(Case("decode", 8, 1, 4), Case("prefill", 8, 1, 4))
    write_results(tmp_path / "new.json", found)
    rows = read_results(tmp_path / "new.json")
    assert rows == [asdict(r) for r in found]
    assert [ModelResult.read(row) for row in rows] == found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_anonymous_peak_sees_what_was_freed_again() -> None:
    with AnonymousPeak() as memory:
        block = torch.ones(64 << 20, dtype=torch.uint8)
        memory.look()
        del block
    assert 60 << 20 <= memory.peak <= 100 << 20


def test_peak_memory_is_at_least_what_is_held() -> None:
    held = torch.ones(32 << 20, dtype=torch.uint8)
    peak = peak_memory(torch.device("cpu"))
    assert peak is None or peak >= held.nbytes

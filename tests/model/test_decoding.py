"""Decoding ahead of what is read, padded and captured: the tokens of one step after the other."""

from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llama2gpu.backends.base import Batch, LayerCache, Looping
from llama2gpu.backends.graphs import Graph, Work
from llama2gpu.backends.loop import DecodeLoop, bucket_of
from llama2gpu.backends.torch import TorchBackend
from llama2gpu.build import build_model
from llama2gpu.checkpoints import RandomCheckpoint
from llama2gpu.config import Config
from llama2gpu.engine import Engine
from llama2gpu.model import Model
from llama2gpu.ops.sample import Drawn
from llama2gpu.request import Request, Token
from llama2gpu.sampling import SamplingParams

CONFIG = Config(dim=48, hidden=60, layers=2, heads=6, kv_heads=2, head_dim=8, vocab=61, context=96)
ENDS = frozenset({7, 11, 40})


class Played:
    """A graph for a CPU, which does again what was captured, into the same results."""

    def __init__(self, work: Work, result: Drawn) -> None:
        self.work, self.result = work, result

    def replay(self) -> None:
        for to, found in zip(self.result, self.work(), strict=True):
            to.copy_(found)


class Ahead(TorchBackend):
    """PyTorch's ops, with steps launched ahead, padded batches, lengths read from the tensors."""

    def __init__(self, lag: int, buckets: bool, captures: bool) -> None:
        super().__init__(torch.device("cpu"))
        self.way = Looping(lag, buckets, (lambda: self.capture) if captures else None)
        self.compiled = False
        self.loop: DecodeLoop | None = None
        self.captured = 0

    def looping(self) -> Looping:
        return self.way

    def attend(self, q: Tensor, batch: Batch, cache: LayerCache) -> Tensor:
        lengths = tuple(batch.lengths.tolist())
        assert all(n <= m for n, m in zip(lengths, batch.cached_counts, strict=True))
        return super().attend(q, replace(batch, cached_counts=lengths), cache)

    def rope(self, x: Tensor, rope: Any, positions: Tensor) -> Tensor:
        return super().rope(x, rope, positions.clone())

    def capture(self, work: Work) -> tuple[Graph, Drawn]:
        """Runs the work for its results' shapes, and takes back what it did."""
        self.captured += 1
        assert self.loop is not None
        assert self.loop._now is not None
        now = self.loop._now
        state = [now.tokens, now.batch.positions, now.batch.slots, now.batch.lengths]
        state += [x for x in vars(now.params).values() if isinstance(x, Tensor)]
        saved = [x.clone() for x in state]
        result = Drawn(*(torch.full_like(x, -1) for x in work()))
        for to, x in zip(state, saved, strict=True):
            to.copy_(x)
        return Played(work, result), result


def model_on(backend: TorchBackend) -> Model:
    return build_model(RandomCheckpoint(CONFIG, torch.float32), backend)


@pytest.fixture(scope="module")
def plain() -> Model:
    return model_on(TorchBackend(torch.device("cpu")))


WAYS = {
    "one ahead": (1, False, False),
    "three ahead": (3, False, False),
    "padded": (0, True, False),
    "padded, two ahead": (2, True, False),
    "captured": (1, True, True),
}


def engine_on(way: str, **options: Any) -> Engine:
    backend = Ahead(*WAYS[way])
    engine = Engine(model_on(backend), **options)
    backend.loop = engine._decoding.loop
    return engine


def steps(engine: Engine, count: int) -> None:
    for _ in range(count):
        engine.step()


def finish(engine: Engine, requests: Seq[Request]) -> list[tuple[list[Token], str | None]]:
    sequences = [engine.add(request) for request in requests]
    while engine.busy:
        engine.step()
    assert engine.cache.free_pages == engine.cache.pages
    return [(s.output, s.reason) for s in sequences]


def agree(
    found: Seq[tuple[list[Token], str | None]], wanted: Seq[tuple[list[Token], str | None]]
) -> None:
    for (tokens, reason), (others, other) in zip(found, wanted, strict=True):
        assert [t.id for t in tokens] == [t.id for t in others]
        assert reason == other
        assert [t.logprob for t in tokens] == pytest.approx([t.logprob for t in others], abs=1e-4)
        assert [[i for i, _ in t.top] for t in tokens] == [[i for i, _ in t.top] for t in others]


REQUESTS = st.lists(
    st.builds(
        lambda prompt, ends, params: Request(prompt, SamplingParams(**params), ends),
        st.lists(st.integers(0, 60), min_size=1, max_size=30),
        st.sampled_from([ENDS, frozenset[int]()]),
        st.fixed_dictionaries(
            {
                "temperature": st.sampled_from([0.0, 1.0]),
                "max_tokens": st.sampled_from([0, 1, 2, 9, 40, None]),
                "top_k": st.sampled_from([0, 5]),
                "repetition_penalty": st.sampled_from([1.0, 1.5]),
                "logit_bias": st.sampled_from([{}, {7: -2.0}]),
                "seed": st.integers(0, 9),
                "logprobs": st.sampled_from([None, 0, 3]),
            }
        ),
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("way", WAYS)
@settings(deadline=None, max_examples=25)
@given(
    requests=REQUESTS,
    page=st.sampled_from([1, 3, 16, 64]),
    chunk=st.integers(1, 50),
    most=st.integers(1, 6),
)
def test_any_mix_equals_alone(
    plain: Model, way: str, requests: list[Request], page: int, chunk: int, most: int
) -> None:
    wanted = [finish(Engine(plain), [r])[0] for r in requests]
    agree(finish(engine_on(way, page=page, chunk=chunk, max_sequences=most), requests), wanted)


@pytest.mark.parametrize("way", WAYS)
def test_who_joins_and_who_leaves_changes_nothing_for_the_others(plain: Model, way: str) -> None:
    def asked(i: int) -> Request:
        return Request([i, 2 * i], SamplingParams(seed=i, max_tokens=40))

    wanted = [finish(Engine(plain), [asked(i)])[0][0] for i in range(5)]
    engine, sequences = engine_on(way, page=16), []
    for i in range(5):
        sequences.append(engine.add(asked(i)))
        for _ in range(7):
            engine.step()
        if i == 2:
            engine.cancel(sequences[1])
    while engine.busy:
        engine.step()
    for i, sequence in enumerate(sequences):
        expected = wanted[i][: len(sequence.output)]
        assert [t.id for t in sequence.output] == [t.id for t in expected]
        assert len(sequence.output) == 40 or i == 1
    assert engine.cache.free_pages == engine.cache.pages


@pytest.mark.parametrize("place", ["launch", "read"])
@pytest.mark.parametrize("way", WAYS)
def test_an_interrupted_step_is_done_again(
    plain: Model, way: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [Request([i, 3], SamplingParams(seed=i, max_tokens=20)) for i in range(3)]
    wanted = [[t.id for t in tokens] for tokens, _ in finish(Engine(plain), asked)]
    engine = engine_on(way)
    sequences = [engine.add(request) for request in asked]
    for _ in range(6):
        engine.step()
    with monkeypatch.context() as patch:
        loop = engine._decoding.loop
        work = getattr(loop, place)

        def interrupted() -> None:
            work()
            raise KeyboardInterrupt

        patch.setattr(loop, place, interrupted)
        with pytest.raises(KeyboardInterrupt):
            steps(engine, 4)
    while engine.busy:
        engine.step()
    assert [[t.id for t in s.output] for s in sequences] == wanted


def test_a_graph_for_each_size_and_way_of_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama2gpu.backends.loop.SHORTEST", 32)
    engine = engine_on("captured")
    backend: Any = engine.model.backend
    for count in (6, 5, 1, 6, 1):  # 5 are padded to 6
        asked = [SamplingParams(temperature=0, max_tokens=70, seed=i) for i in range(count)]
        finish(engine, [Request([i], params) for i, params in enumerate(asked)])
    assert backend.captured == 6  # two sizes, each up to 32, 64 and 96 tokens
    finish(engine, [Request([1], SamplingParams(temperature=1, max_tokens=20))])
    assert backend.captured == 7


def test_sizes_of_buckets() -> None:
    sizes = [bucket_of(n) for n in range(1, 258)]
    assert sorted(set(sizes)) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384]
    assert all(n <= size < 1.5 * n or size == n for n, size in enumerate(sizes, 1))

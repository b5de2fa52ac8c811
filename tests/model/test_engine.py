"""The engine on a random model: any mix of requests gives what each gives alone."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2gpu.backends import choose_backend
from llama2gpu.backends.base import OPS
from llama2gpu.build import build_model
from llama2gpu.checkpoints import RandomCheckpoint
from llama2gpu.config import Config
from llama2gpu.engine import Engine
from llama2gpu.errors import RequestError
from llama2gpu.model import Model
from llama2gpu.request import Request
from llama2gpu.sampling import SamplingParams

CONFIG = Config(dim=48, hidden=60, layers=2, heads=6, kv_heads=2, head_dim=8, vocab=61, context=96)


@pytest.fixture(scope="module")
def model() -> Model:
    return build_model(RandomCheckpoint(CONFIG, torch.float32), choose_backend("torch", "cpu"))


def run(engine: Engine, requests: Sequence[Request]) -> list[list[int]]:
    sequences = [engine.add(request) for request in requests]
    while engine.busy:
        engine.step()
    return [[token.id for token in s.output] for s in sequences]


def request(prompt: Sequence[int], stop_ids: Sequence[int] = (), **params: Any) -> Request:
    return Request(list(prompt), SamplingParams(**params), frozenset(stop_ids))


PROMPTS = st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=40), min_size=1, max_size=6)


@settings(deadline=None, max_examples=40)
@given(
    prompts=PROMPTS,
    chunk=st.integers(1, 50),
    page=st.sampled_from([1, 3, 16, 64]),
    most=st.integers(1, 4),
    temperature=st.sampled_from([0.0, 1.0]),
    tokens=st.integers(1, 30),
)
def test_any_mix_equals_alone(
    model: Model,
    prompts: list[list[int]],
    chunk: int,
    page: int,
    most: int,
    temperature: float,
    tokens: int,
) -> None:
    requests = [
        request(p, temperature=temperature, seed=i, max_tokens=tokens + i)
        for i, p in enumerate(prompts)
    ]
    engine = Engine(model, chunk=chunk, page=page, max_sequences=most)
    together = run(engine, requests)
    alone = [run(Engine(model), [r])[0] for r in requests]
    assert together == alone
    assert engine.cache.free_pages == engine.cache.pages


def test_recomputed_equals_cached(model: Model) -> None:
    requests = [request([1, 2, 3], max_tokens=40, seed=3), request([9] * 30, temperature=0)]
    assert run(Engine(model, recompute=True), requests) == run(Engine(model), requests)


def test_without_bound_it_runs_to_the_end_of_the_context(model: Model) -> None:
    engine = Engine(model, page=16)
    sequence = engine.add(request([1, 2, 3], max_tokens=None))
    while engine.busy:
        engine.step()
    assert sequence.reason == "context"
    assert len(sequence.output) == CONFIG.context - 3 + 1


def test_prompt_as_long_as_the_context_gives_one_token(model: Model) -> None:
    sequence = (engine := Engine(model)).add(request([5] * 96))
    while engine.busy:
        engine.step()
    assert (len(sequence.output), sequence.reason) == (1, "context")


def test_prompt_too_long_names_both_numbers(model: Model) -> None:
    with pytest.raises(RequestError, match=r"97 tokens .* 96"):
        Engine(model).add(request([5] * 97))


@pytest.mark.parametrize("prompt", [[], [61], [-1]])
def test_bad_prompts(model: Model, prompt: list[int]) -> None:
    with pytest.raises(RequestError):
        Engine(model).add(request(prompt))


def test_no_tokens_wanted(model: Model) -> None:
    engine = Engine(model)
    assert engine.add(request([1], max_tokens=0)).reason == "length"
    assert not engine.busy


def test_stop_ids(model: Model) -> None:
    plain = run(Engine(model), [request([4, 5], temperature=0, max_tokens=20)])[0]
    last = plain[7]
    engine = Engine(model)
    sequence = engine.add(request([4, 5], stop_ids=[last], temperature=0, max_tokens=20))
    while engine.busy:
        engine.step()
    assert [t.id for t in sequence.output] == plain[: plain.index(last)]
    assert sequence.reason == "eos"
    ignoring = request([4, 5], stop_ids=[last], temperature=0, max_tokens=20, ignore_eos=True)
    assert run(Engine(model), [ignoring])[0] == plain


def test_cancelled_frees_its_pages(model: Model) -> None:
    engine = Engine(model, page=16)
    first, second = (engine.add(request([1] * 20, max_tokens=30)) for _ in range(2))
    engine.step()
    engine.cancel(first)
    held = len(second.pages)
    assert engine.cache.free_pages == engine.cache.pages - held
    while engine.busy:
        engine.step()
    assert (first.reason, second.reason) == ("cancelled", "length")
    assert engine.cache.free_pages == engine.cache.pages


def test_a_cache_that_can_not_be_had_says_its_size(model: Model) -> None:
    engine = Engine(model)
    for pages in (1 << 45, 1 << 62):
        with pytest.raises(RequestError, match="GiB"):
            engine.cache.grow(pages)
    assert engine.cache.pages == 0


def test_logprobs_are_the_models_own(model: Model) -> None:
    engine = Engine(model)
    sequence = engine.add(
        request([1, 2], temperature=0.3, top_k=3, logprobs=5, max_tokens=6, seed=1)
    )
    while engine.busy:
        engine.step()
    for token in sequence.output:
        known = dict(token.top)
        assert len(known) == 5
        assert known[token.id] == pytest.approx(token.logprob, abs=1e-5)
        assert list(known.values()) == sorted(known.values(), reverse=True)


def test_an_interrupted_prompt_is_done_again(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = request([1, 2, 3], temperature=0, max_tokens=6)
    wanted = run(Engine(model), [asked])
    engine = Engine(model)
    sequence = engine.add(asked)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_draw", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.step()
    while engine.busy:
        engine.step()
    assert [[token.id for token in sequence.output]] == wanted


def test_no_memory_ends_one_sequence_and_spares_the_others(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model, page=16)
    grow = engine.cache.grow

    def limited(pages: int) -> None:
        if engine.cache.pages + pages > 4:
            raise RequestError("no memory")
        grow(pages)

    monkeypatch.setattr(engine.cache, "grow", limited)
    small = engine.add(request([1], max_tokens=20))
    large = engine.add(request([1] * 90, max_tokens=5))
    while engine.busy:
        engine.step()
    assert (small.reason, small.error) == ("length", None)
    assert (large.reason, str(large.error)) == ("cancelled", "no memory")
    assert engine.cache.free_pages == engine.cache.pages


def test_the_cache_grows_once_for_all_that_join(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, grown = Engine(model, page=16), []
    grow = engine.cache.grow

    def counted(pages: int) -> None:
        grown.append(pages)
        grow(pages)

    monkeypatch.setattr(engine.cache, "grow", counted)
    for _ in range(20):
        engine.add(request([1, 2], max_tokens=30))
    engine.step()
    assert grown == [20 * 2]


def test_damaged_weights_are_noticed() -> None:
    checkpoint = RandomCheckpoint(CONFIG, torch.float32)
    read = checkpoint.read
    checkpoint.read = lambda name: read(name) * (torch.nan if name == "norm" else 1)  # type: ignore[method-assign]
    engine = Engine(build_model(checkpoint, choose_backend("torch", "cpu")))
    sequence = engine.add(request([1, 2]))
    while engine.busy:
        engine.step()
    assert "no numbers" in str(sequence.error)
    assert sequence.output == []


def test_a_promised_context_costs_nothing() -> None:
    config = replace(CONFIG, context=1 << 30)
    model = build_model(RandomCheckpoint(config, torch.float32), choose_backend("torch", "cpu"))
    assert len(model.rope.cos) == 2048
    long = request([1] * 3000, temperature=0, max_tokens=3)
    assert len(run(Engine(model), [long])[0]) == 3
    assert 3000 <= len(model.rope.cos) <= 8192


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("primary", "lender"), [("torch", "numpy"), ("numpy", "torch")])
def test_every_op_can_be_borrowed(primary: str, lender: str, op: str, dtype: str) -> None:
    backend = choose_backend(primary, "cpu", {op: lender})
    model = build_model(RandomCheckpoint(CONFIG, torch.float32), backend, dtype)
    tokens = run(Engine(model), [request([1, 2, 3], temperature=0, max_tokens=5)])[0]
    if dtype == "fp32":
        plain = build_model(RandomCheckpoint(CONFIG, torch.float32), choose_backend("numpy"))
        assert tokens == run(Engine(plain), [request([1, 2, 3], temperature=0, max_tokens=5)])[0]
    assert len(tokens) == 5

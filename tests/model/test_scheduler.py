"""Requests that come and go, share what is cached and wait for pages; each text is its own."""

from dataclasses import replace
from functools import cache
from itertools import accumulate, repeat, starmap
from random import Random
from typing import Any

import pytest
import torch

from llama2gpu import scheduler
from llama2gpu.backends import choose_backend
from llama2gpu.build import build_model
from llama2gpu.checkpoints import RandomCheckpoint
from llama2gpu.engine import Engine
from llama2gpu.errors import RequestError
from llama2gpu.model import Model
from llama2gpu.request import Request, Sequence
from llama2gpu.sampling import SamplingParams
from tests.model.test_decoding import CONFIG, WAYS, engine_on

SYSTEM = [(7 * n) % 61 for n in range(40)]
Asked = tuple[tuple[int, ...], int, float]


@cache
def model_of(backend: str = "torch") -> Model:
    return build_model(RandomCheckpoint(CONFIG, torch.float32), choose_backend(backend, "cpu"))


def request(asked: Asked) -> Request:
    prompt, tokens, temperature = asked
    return Request(prompt, SamplingParams(temperature=temperature, max_tokens=tokens, seed=5))


def finish(engine: Engine) -> None:
    while engine.busy:
        engine.step()


def ids(sequence: Sequence) -> list[int]:
    return [token.id for token in sequence.output]


@cache
def alone(asked: Asked) -> list[int]:
    sequence = (engine := Engine(model_of(), share=False)).add(request(asked))
    finish(engine)
    return ids(sequence)


def all_is_free(engine: Engine) -> bool:
    return engine.cache.free_pages == engine.cache.pages and not any(engine.cache.book.holders)


def engine_of(way: str, seed: int = 0, **options: Any) -> Engine:
    """An engine whose steps take random times, always the same ones."""
    clock = accumulate(starmap(Random(seed).random, repeat(())))
    options["clock"] = clock.__next__
    return engine_on(way, **options) if way in WAYS else Engine(model_of(way), **options)


PROMPT = tuple(SYSTEM * 2)


@pytest.mark.parametrize("kv_dtype", [None, torch.int8])
@pytest.mark.parametrize("together", [True, False])
def test_what_prompts_share_is_computed_once(together: bool, kv_dtype: torch.dtype | None) -> None:
    engine = Engine(model_of(), page=16, kv_dtype=kv_dtype)
    sequences = []
    for n in range(6):
        sequences.append(engine.add(request(((*SYSTEM, n, n), 4, 0.0))))
        if not together:
            finish(engine)
    finish(engine)
    # 40 tokens are two pages and half of one, which is copied
    assert engine.stats.prefill_tokens == 40 + 6 * 2
    assert engine.stats.reused_tokens == 5 * 40
    if kv_dtype is None:
        wanted = [alone(((*SYSTEM, n, n), 4, 0.0)) for n in range(6)]
        assert [ids(s) for s in sequences] == wanted
    assert all_is_free(engine)


@pytest.mark.parametrize("together", [True, False])
def test_a_system_prompt_of_400_tokens_in_pages_as_they_are(together: bool) -> None:
    checkpoint = RandomCheckpoint(replace(CONFIG, context=1024), torch.float32)
    engine = Engine(build_model(checkpoint, choose_backend("torch", "cpu")))
    for n in range(8):
        engine.add(request(((*(n % 61 for n in range(400)), n, n), 3, 0.0)))
        if not together:
            finish(engine)
    finish(engine)
    assert engine.stats.prefill_tokens == 400 + 8 * 2


def test_who_shares_takes_the_rest_at_once() -> None:
    engine = Engine(model_of(), page=16)
    engine.scheduler.pace.tokens = lambda decoding: 512  # type: ignore[method-assign]
    sequences = [engine.add(request(((*SYSTEM, n, n), 4, 0.0))) for n in range(6)]
    engine.step()
    assert [len(s.output) for s in sequences] == [1, 0, 0, 0, 0, 0]
    engine.step()
    assert [len(s.output) for s in sequences] == [2, 1, 1, 1, 1, 1]
    assert engine.stats.prefill_tokens == 40 + 6 * 2


def test_a_little_that_was_found_is_no_reason_to_compute_the_rest() -> None:
    engine = Engine(model_of(), page=16)
    engine.add(request(((*SYSTEM[:8], 1, 2), 1, 0.0)))
    finish(engine)
    asked = [((*SYSTEM, n, n), 4, 0.0) for n in range(2)]
    sequences = [engine.add(request(a)) for a in asked]
    finish(engine)
    assert [ids(s) for s in sequences] == [alone(a) for a in asked]
    assert engine.stats.prefill_tokens == 10 + (40 - 8) + 2 * 2


def test_a_page_is_shared_for_all_that_is_before_it() -> None:
    """Two prompts of the same pages but the first share none, chunk by chunk."""
    engine = Engine(model_of(), page=16, max_pages=20, chunk=16)
    asked = [((n,) * 16 + PROMPT[:50], 10, 0.0) for n in range(3)]
    for a in asked:
        sequence = engine.add(request(a))
        finish(engine)
        assert ids(sequence) == alone(a)
    assert engine.stats.reused_tokens == 0


def test_a_conversation_goes_on_from_its_answer() -> None:
    engine = Engine(model_of(), page=16)
    first = engine.add(request((PROMPT[:20], 25, 0.0)))
    finish(engine)
    before = engine.stats.prefill_tokens
    longer = (*PROMPT[:20], *ids(first), 5, 6)
    second = engine.add(request((longer, 5, 0.0)))
    finish(engine)
    assert engine.stats.prefill_tokens - before == len(longer) - 44  # the last token was not taken
    assert ids(second) == alone((longer, 5, 0.0))


def test_a_full_page_is_copied_before_its_last_token_is_taken_again() -> None:
    engine = Engine(model_of(), page=16)
    asked = (PROMPT[:32], 20, 0.0)
    first = engine.add(request(asked))
    for _ in range(5):
        engine.step()
    second = engine.add(request(asked))
    engine.step()
    engine.step()
    assert first.pages[0] == second.pages[0]
    assert not set(first.pages[1:]) & set(second.pages[1:])
    finish(engine)
    assert ids(first) == ids(second) == alone(asked)
    assert engine.stats.prefill_tokens == 32 + 1


def test_who_finds_too_few_pages_waits_in_order() -> None:
    engine = Engine(model_of(), page=16, max_pages=6)
    sizes = [4, 3, 6, 1, 2]
    added = [engine.add(request(((n,) * (16 * size - 9), 10, 0.0))) for n, size in enumerate(sizes)]
    engine.step()
    assert engine.running == added[:1]
    seen = []
    while engine.busy:
        engine.step()
        seen += [s for s in engine.running if s not in seen]
    assert seen == added[: len(seen)]
    assert [(s.reason, len(s.output)) for s in added] == [("length", 10)] * 5
    assert engine.cache.pages == engine.cache.free_pages == 6


@pytest.mark.parametrize("way", ["torch", "padded, two ahead"])
def test_the_last_who_came_makes_room(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More are admitted than can end together; each text is its own, the oldest never waits."""
    monkeypatch.setattr(scheduler, "RESERVE", 16)
    engine = engine_of(way, page=16, max_pages=6)
    asked = [((n,) * 20, 60, float(n % 2)) for n in range(4)]
    sequences = [engine.add(request(a)) for a in asked]
    engine.step()
    assert len(engine.running) == 2  # three pages each; a whole one takes five
    ended: list[Sequence] = []
    while engine.busy:
        engine.step()
        assert sequences[len(ended)] in engine.running or sequences[len(ended)].reason
        ended += [s for s in sequences if s.reason and s not in ended]
    assert ended == sequences
    assert [ids(s) for s in sequences] == [alone(a) for a in asked]
    assert engine.scheduler.preempted > 0
    assert all_is_free(engine)
    assert engine.cache.pages == 6


@pytest.mark.parametrize("way", ["torch", "one ahead"])
def test_who_made_room_for_a_prompt_that_rests(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone before and after, it goes on from the pages that it has then."""
    monkeypatch.setattr(scheduler, "RESERVE", 1)
    engine = engine_of(way, page=16, max_pages=9)
    pace, asked = engine.scheduler.pace, ((3,) * 20, 70, 1.0)
    monkeypatch.setattr(pace, "tokens", lambda decoding: 0 if decoding else 512)
    engine.add(request((PROMPT[:17], 1, 0.0)))
    resting = engine.add(request(((*PROMPT[:17], *[5] * 60), 1, 0.0)))
    last = engine.add(request(asked))
    engine.step()
    pace._owed = 1e9
    while last in engine.running:
        engine.step()
    assert engine.running == [resting]
    engine.cancel(resting)
    finish(engine)
    undisturbed = (other := Engine(model_of())).add(request(asked))
    finish(other)
    assert ids(last) == ids(undisturbed)
    wanted = [token.logprob for token in undisturbed.output]
    assert [token.logprob for token in last.output] == pytest.approx(wanted, abs=1e-4)


def test_sharing_makes_room() -> None:
    engine = Engine(model_of(), page=16, max_pages=8)
    for n in range(3):
        engine.add(request(((*PROMPT[:48], n), 10, 0.0)))
        for _ in range(2):
            engine.step()
    assert len(engine.running) == 3  # 4 pages each, of which 3 are the same
    finish(engine)
    assert all_is_free(engine)


def test_the_longest_unused_go_first() -> None:
    engine = Engine(model_of(), page=16, max_pages=6)
    prompts = [(n, *PROMPT[:31]) for n in range(4)]
    for n in (0, 1, 0, 2):  # two pages each, and one more for a second
        engine.add(request((prompts[n], 1, 0.0)))
        finish(engine)
    for n, known in ((0, 31), (2, 31), (1, 16)):  # of the pages of 1 the last one
        before = engine.stats.reused_tokens
        engine.add(request((prompts[n], 1, 0.0)))
        finish(engine)
        assert engine.stats.reused_tokens - before == known


def test_without_bound_of_its_own_a_request_ends_with_the_cache() -> None:
    engine = Engine(model_of(), page=16, max_pages=2)
    sequence = engine.add(Request([1, 2, 3], SamplingParams(max_tokens=None)))
    finish(engine)
    assert (sequence.reason, len(sequence.output)) == ("context", 30)


@pytest.mark.parametrize(("prompt", "tokens"), [(20, 14), (33, None), (33, 1), (1, 33)])
def test_what_can_never_fit_is_refused(prompt: int, tokens: int | None) -> None:
    engine = Engine(model_of(), page=16, max_pages=2)
    asked = Request([1] * prompt, SamplingParams(max_tokens=tokens))
    for refusing in (engine.check, engine.add):
        with pytest.raises(RequestError, match="but the cache holds 32: shorten") as caught:
            refusing(asked)
        assert "\n" not in str(caught.value)
    assert not engine.busy
    fits = engine.add(Request([1] * 20, SamplingParams(max_tokens=13)))
    finish(engine)
    assert len(fits.output) == 13


def test_no_pages() -> None:
    with pytest.raises(RequestError, match="max_pages is 0: give 1 or more"):
        Engine(model_of(), max_pages=0)


@pytest.mark.parametrize("way", ["torch", "one ahead"])
def test_no_number_reaches_those_who_share(way: str) -> None:
    engine = engine_of(way, page=16, max_pages=12)
    weights: Any = engine.model.weights.embed
    kept = weights.data[43].clone()
    weights.data[43] = torch.nan
    try:
        well = engine.add(request(((*SYSTEM, 1), 20, 0.0)))
        for _ in range(4):
            engine.step()
        ill = engine.add(request(((*SYSTEM, 43), 20, 0.0)))
        left = engine.add(request(((*SYSTEM[:39], *[43] * 20), 20, 0.0)))
        while ill.reason is None:
            engine.step()
        engine.cancel(left)
        finish(engine)
    finally:
        weights.data[43] = kept
    assert "no numbers" in str(ill.error)
    assert all(part.isfinite().all() for part in engine.cache.parts)
    again = [((*SYSTEM, n), 20, 0.0) for n in (1, 43)]
    others = [engine.add(request(asked)) for asked in again]
    finish(engine)
    assert [ids(s) for s in (well, *others)] == [alone(again[0]), *map(alone, again)]

"""What comes between two steps: guests, damaged neighbors, Control-C; others never notice."""

import sys
from collections.abc import Sequence as Seq
from contextlib import suppress
from typing import Any

import pytest
import torch

from llama2gpu.backends.torch import TorchBackend
from llama2gpu.engine import Engine
from llama2gpu.model import Model
from llama2gpu.request import Request, Sequence, Token
from llama2gpu.sampling import SamplingParams
from tests.model.test_decoding import WAYS, engine_on, finish, model_on, steps
from tests.model.test_decoding import plain as plain
from tests.model.test_scheduler_random import Interrupting

CPU = torch.device("cpu")
#: As in `test_decoding`, and the engine as it is by default on a CPU.
EVERY_WAY = (*WAYS, "default")


def engine_of(way: str, plain: Model, **options: Any) -> Engine:
    return Engine(plain, **options) if way == "default" else engine_on(way, **options)


def asked(i: int, **params: Any) -> Request:
    return Request([i + 1, 2 * i, 3], SamplingParams(**{"max_tokens": 30, "seed": i + 1, **params}))


def ids(tokens: Seq[Token]) -> list[int]:
    return [token.id for token in tokens]


@pytest.mark.parametrize(
    "guest",
    [{"max_tokens": 1}, {"max_tokens": 2}, {"sampler": "llama2c", "max_tokens": 5}],
    ids=str,
)
@pytest.mark.parametrize("way", EVERY_WAY)
def test_guests(way: str, guest: dict[str, Any], plain: Model) -> None:
    """Who comes and goes within a step or a few leaves the others where they are."""
    wanted = [ids(finish(Engine(plain), [asked(i)])[0][0]) for i in range(2)]
    engine = engine_of(way, plain)
    staying = [engine.add(asked(i)) for i in range(2)]
    steps(engine, 5)
    for _ in range(2):
        visitor = engine.add(asked(5, **guest))
        while visitor.reason is None:
            engine.step()
        steps(engine, 3)
    while engine.busy:
        engine.step()
    assert [ids(s.output) for s in staying] == wanted


@pytest.mark.parametrize("sampler", ["default", "llama2c"])
@pytest.mark.parametrize("after", [0, 1, 4, 13])
@pytest.mark.parametrize("way", EVERY_WAY)
def test_interrupted_while_tokens_are_taken(
    way: str, after: int, sampler: str, plain: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [asked(i, sampler=sampler) for i in range(3)]
    wanted = [ids(tokens) for tokens, _ in finish(Engine(plain), requests)]
    engine = engine_of(way, plain)
    sequences = [engine.add(request) for request in requests]
    accept, calls = Sequence.accept, 0

    def interrupted(self: Sequence, token: Token) -> bool:
        nonlocal calls
        calls += 1
        if calls == after + 1:
            raise KeyboardInterrupt
        return accept(self, token)

    monkeypatch.setattr(Sequence, "accept", interrupted)
    with pytest.raises(KeyboardInterrupt):
        steps(engine, 20)
    for _ in range(200):
        if engine.busy:
            engine.step()
    assert not engine.busy
    assert [ids(s.output) for s in sequences] == wanted


@pytest.mark.parametrize(
    "params", [{"frequency_penalty": 1.5}, {"sampler": "llama2c"}], ids=lambda p: next(iter(p))
)
def test_interrupted_at_any_line_that_counts_a_token(
    params: dict[str, Any], plain: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ids(finish(Engine(plain), [asked(0, **params)])[0][0])
    at, interrupted = 0, True
    while interrupted:
        at += 1
        engine = Engine(plain)
        sequence = engine.add(asked(0, **params))
        steps(engine, 4)
        before, interrupting = sys.gettrace(), Interrupting(at, ("sampling",))
        sys.settrace(interrupting)
        with suppress(KeyboardInterrupt):
            engine.step()
        sys.settrace(before)
        interrupted = not interrupting.left
        while engine.busy:
            engine.step()
        assert ids(sequence.output) == wanted
    assert at > 5  # lines of its own


@pytest.mark.parametrize("way", EVERY_WAY)
def test_no_number_stays_behind(way: str) -> None:
    """A request whose logits are no numbers fails alone, and so does nobody after it."""
    model = model_on(TorchBackend(CPU))
    healthy = [Request([1, 2], SamplingParams(temperature=0, max_tokens=20)),
               Request([4] * 20, SamplingParams(temperature=0, max_tokens=20))]  # fmt: skip
    wanted = [ids(finish(Engine(model), [r])[0][0]) for r in healthy]
    engine = Engine(model) if way == "default" else engine_on(way)
    weights: Any = engine.model.weights.embed
    kept = weights.data[60].clone()
    weights.data[60] = torch.nan
    ill = engine.add(Request([60] * 40, SamplingParams(max_tokens=20)))
    while engine.busy:
        engine.step()
    assert "no numbers" in str(ill.error)
    weights.data[60] = kept
    assert [ids(tokens) for tokens, _ in finish(engine, healthy)] == wanted


@pytest.mark.parametrize("end", ["cancelled", "eos", "failed"])
@pytest.mark.parametrize("way", EVERY_WAY)
def test_no_number_of_a_step_ahead_stays_behind(way: str, end: str) -> None:
    """One that ends has been taken further by then; nobody finds that on its pages."""
    model = model_on(TorchBackend(CPU))
    after = [
        Request(prompt, SamplingParams(temperature=0, max_tokens=3)) for prompt in ([8] * 20, [9])
    ]
    wanted = [ids(finish(Engine(model), [r])[0][0]) for r in after]
    params = SamplingParams(temperature=0, max_tokens=30)
    bad = ids(finish(Engine(model), [Request([1, 2, 3], params)])[0][0])[5]
    options: dict[str, Any] = {"page": 16, "max_pages": 3}
    engine = Engine(model, **options) if way == "default" else engine_on(way, **options)
    weights: Any = engine.model.weights.embed
    kept = weights.data[bad].clone()
    weights.data[bad] = torch.nan
    stop_ids = frozenset([bad] if end == "eos" else [])
    ill = engine.add(Request([1, 2, 3], params, stop_ids))
    while ill.reason is None:
        engine.step()
        if end == "cancelled" and bad in ids(ill.output):
            engine.cancel(ill)
    weights.data[bad] = kept
    assert ("failed" if ill.error else ill.reason) == end
    assert all(part.isfinite().all() for part in engine.cache.parts)
    assert [ids(tokens) for tokens, _ in finish(engine, after)] == wanted


@pytest.mark.parametrize("way", EVERY_WAY)
def test_half_a_prompt_is_shared_with_nobody(way: str, plain: Model) -> None:
    """Nothing was drawn from it that would show that it is made of numbers."""
    wanted = Request([60] * 60, SamplingParams(temperature=0, max_tokens=5))
    options: dict[str, Any] = {"page": 16, "chunk": 50}
    model = model_on(TorchBackend(CPU))
    engine = Engine(model, **options) if way == "default" else engine_on(way, **options)
    weights: Any = engine.model.weights.embed
    kept = weights.data[60].clone()
    weights.data[60] = torch.nan
    left = engine.add(wanted)
    engine.step()
    assert left.cached == 50
    engine.cancel(left)
    weights.data[60] = kept
    assert ids(finish(engine, [wanted])[0][0]) == ids(finish(Engine(plain), [wanted])[0][0])

"""Prompts beside those who decode: few enough tokens a step, on any kind of machine."""

from collections.abc import Iterator

import pytest
import torch

from llama2gpu.engine import Engine
from llama2gpu.model import Model
from llama2gpu.pace import MOST, REST, Pace
from llama2gpu.request import Request, Sequence
from llama2gpu.sampling import SamplingParams
from tests.model.test_decoding import engine_on
from tests.model.test_decoding import plain as plain

#: Seconds of a step, of each sequence that decodes, and of each prompt token; and what a step takes
#: less where it is replayed from a graph.
MACHINES = {
    "bound by memory": (1.0, 0.01, 0.02, 0.0),
    "bound by arithmetic": (0.2, 0.2, 0.2, 0.0),
    "slow to launch": (3.0, 0.0, 0.01, 2.7),
}


def simulated(machine: str, decoding: int, prompt: int) -> Iterator[tuple[int, float, float]]:
    """Prompt tokens and seconds of each step while a prompt is taken, and of a pure one alone."""
    step, each, token, saved = MACHINES[machine]
    pace = Pace(512)
    pace.note(512, 0, step + 512 * token, False)
    alone = step + decoding * each - saved
    for _ in range(4):
        pace.note(0, decoding, alone, saved > 0)
    while prompt:
        took = min(pace.tokens(decoding), prompt)
        replayed = not took and pace.resting and saved > 0
        seconds = step + decoding * each + took * token - saved * replayed
        pace.note(took, decoding, seconds, replayed)
        prompt -= took
        yield took, seconds, alone


@pytest.mark.parametrize("decoding", [1, 4, 16])
@pytest.mark.parametrize("machine", MACHINES)
def test_others_go_on_at_half_their_speed(machine: str, decoding: int) -> None:
    steps = list(simulated(machine, decoding, 4000))
    taken, seconds, alone = zip(*steps, strict=True)
    assert sum(seconds) <= (MOST + 0.15) * sum(alone)
    if machine != "slow to launch":
        assert all(s <= 2 * a for s, a in zip(seconds, alone, strict=True))
        if decoding > 1:
            assert sum(seconds) >= 1.5 * sum(alone)  # nor does the prompt wait in vain
    assert sum(taken) == 4000


def test_alone_a_prompt_takes_the_whole_chunk() -> None:
    assert Pace(77).tokens(0) == 77


def test_one_hiccup_does_not_starve_a_prompt() -> None:
    pace = Pace(512)
    pace.note(100, 0, 1.0, False)
    for _ in range(3):
        pace.note(0, 2, 0.1, False)
    before = pace.tokens(2)
    pace.note(before, 2, 3600.0, False)
    waited = 0
    while pace.tokens(2) == 0:
        pace.note(0, 2, 0.1, False)
        waited += 1
    assert waited <= REST + 1
    assert before / 4 <= pace.tokens(2) <= before


class Machine:
    """A clock that goes on as a model's tokens do: so much for a step, so much for each token."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, forward = 0.0, engine.model.forward
        self.sizes: list[int] = []

        def timed(tokens: torch.Tensor, *rest: object) -> torch.Tensor:
            self.now += 1.0 + 0.05 * len(tokens)
            self.sizes.append(len(tokens))
            return forward(tokens, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(engine.model, "forward", timed)
        engine.clock = lambda: self.now


def asked(first: int, length: int, tokens: int) -> Request:
    prompt = [(first + 3 * n) % 61 for n in range(length)]
    return Request(prompt, SamplingParams(temperature=0, max_tokens=tokens))


@pytest.mark.parametrize("way", ["default", "one ahead", "padded, two ahead"])
def test_a_long_prompt_beside_two_streams(
    way: str, plain: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(plain) if way == "default" else engine_on(way)
    machine = Machine(engine, monkeypatch)
    streams = [engine.add(asked(n, 5, 60)) for n in range(2)]
    for _ in range(8):
        engine.step()
    late, before = engine.add(asked(9, 90, 4)), [len(s.output) for s in streams]
    began, first = machine.now, len(machine.sizes)
    while not late.output:
        engine.step()
    drawn = [len(s.output) - n for s, n in zip(streams, before, strict=True)]
    assert (machine.now - began) / min(drawn) < 2 * 1.1
    assert max(machine.sizes[first:]) < 24
    assert len(machine.sizes[first:]) < 20
    while engine.busy:
        engine.step()
    for n, s in enumerate([*streams, late]):
        request = [asked(0, 5, 60), asked(1, 5, 60), asked(9, 90, 4)][n]
        assert [t.id for t in s.output] == alone(plain, request)


def alone(model: Model, request: Request) -> list[int]:
    sequence: Sequence = (engine := Engine(model, share=False)).add(request)
    while engine.busy:
        engine.step()
    return [token.id for token in sequence.output]


def test_nobody_decodes_then_the_chunk_is_whole(
    plain: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(plain, chunk=64)
    machine = Machine(engine, monkeypatch)
    for n in range(3):
        engine.add(asked(20 * n, 60, 1))
    while engine.busy:
        engine.step()
    assert machine.sizes == [64, 64, 52]

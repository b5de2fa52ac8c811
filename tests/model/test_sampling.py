"""Sampling: the distribution it promises, the order of its steps, llama2.c's generator."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from llama2gpu.errors import RequestError
from llama2gpu.ops.noise import philox, uniform_words
from llama2gpu.ops.sample import SampleParams, lowest_argmax, penalize, sample, truncate
from llama2gpu.sampling import Llama2CSampler, SamplerState, SamplingParams, stack

CPU = torch.device("cpu")
LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.5, -1.0, -torch.inf])


def params(count: int = 1, prompt: tuple[int, ...] = (), **asked: Any) -> SampleParams:
    wanted = SamplingParams(**{"seed": 11, **asked})
    return stack([SamplerState(wanted, prompt, 6, CPU) for _ in range(count)], 6, CPU)


def frequencies(count: int, **asked: Any) -> torch.Tensor:
    """Share of each token over `count` draws."""
    many = replace(params(count, **asked), draw=torch.arange(count))
    tokens, _ = sample(LOGITS.expand(count, -1), many)
    return torch.bincount(tokens, minlength=6) / count


def expected(kept: list[int], temperature: float = 1.0) -> torch.Tensor:
    hidden = torch.full((6,), -torch.inf)
    hidden[kept] = LOGITS[kept] / temperature
    return hidden.softmax(0)


@pytest.mark.parametrize(
    ("asked", "kept", "temperature"),
    [
        ({"temperature": 1.0, "top_p": 1.0}, [0, 1, 2, 3, 4], 1.0),
        ({"temperature": 2.0, "top_p": 1.0}, [0, 1, 2, 3, 4], 2.0),
        ({"temperature": 1.0, "top_p": 1.0, "top_k": 2}, [0, 1], 1.0),
        ({"temperature": 1.0, "top_p": 1.0, "top_k": 3}, [0, 1, 2, 3], 1.0),
        ({"temperature": 1.0, "top_p": 0.6}, [0, 1], 1.0),
        ({"temperature": 1.0, "top_p": 0.001}, [0], 1.0),
        ({"temperature": 1.0, "top_p": 1.0, "min_p": 0.3}, [0, 1], 1.0),
        ({"temperature": 1.0, "top_p": 0.99, "top_k": 2, "min_p": 0.01}, [0, 1], 1.0),
    ],
)
def test_distribution(asked: dict[str, Any], kept: list[int], temperature: float) -> None:
    count = 40_000
    found, wanted = frequencies(count, **asked), expected(kept, temperature)
    assert torch.all(found[wanted == 0] == 0)
    deviation = (wanted * (1 - wanted) / count).sqrt()
    assert torch.all((found - wanted).abs() <= 4.5 * deviation + 1e-9)


def test_greedy_takes_the_lowest_of_equals() -> None:
    assert lowest_argmax(torch.tensor([[1.0, 3.0, 3.0], [0.0, 0.0, 0.0]])).tolist() == [1, 0]
    tokens, logprobs = sample(LOGITS[None], params(temperature=0))
    assert tokens.tolist() == [0]
    assert float(logprobs[0]) == pytest.approx(float(LOGITS.log_softmax(0)[0]), abs=1e-6)


def test_penalties_in_order() -> None:
    state = SamplerState(
        SamplingParams(
            repetition_penalty=2.0,
            presence_penalty=0.25,
            frequency_penalty=0.5,
            logit_bias={1: 3.0},
        ),
        [0, 4],
        6,
        CPU,
    )
    for token in (1, 1, 4):
        state.catch_up([token])
    out = penalize(LOGITS[None], stack([state], 6, CPU))[0]
    wanted = [1.0, (1.0 + 3.0) / 2 - 0.25 - 1.0, 0.5, 0.5, -1.0 * 2 - 0.25 - 0.5, -torch.inf]
    assert out.tolist() == wanted


def test_one_that_penalizes_leaves_its_neighbour_alone() -> None:
    plain = SamplerState(SamplingParams(), [0], 6, CPU)
    penalized = SamplerState(SamplingParams(repetition_penalty=1.5), [0], 6, CPU)
    out = penalize(LOGITS.expand(2, -1), stack([plain, penalized], 6, CPU))
    assert torch.equal(out[0], LOGITS)
    assert float(out[1, 0]) == pytest.approx(2.0 / 1.5)


def test_equals_stand_or_fall_together() -> None:
    kept = truncate(LOGITS[None], params(temperature=1.0, top_p=0.85))[0]
    assert torch.isfinite(kept[2])
    assert torch.isfinite(kept[3])


def test_a_draw_depends_on_seed_and_count_alone() -> None:
    many = replace(params(8, temperature=1.0), draw=torch.arange(8))
    together, _ = sample(LOGITS.expand(8, -1), many)
    alone = [
        int(sample(LOGITS[None], replace(params(temperature=1.0), draw=torch.tensor([i])))[0])
        for i in range(8)
    ]
    assert together.tolist() == alone


def test_philox_known_answers() -> None:
    """Vectors published with Random123."""
    ones = torch.tensor([0xFFFFFFFF])
    zero = torch.tensor([0])
    pi = [torch.tensor([x]) for x in (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)]
    key = torch.tensor([0xA4093822]), torch.tensor([0x299F31D0])
    for counter, k, wanted in (
        ((zero,) * 4, (zero,) * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((ones,) * 4, (ones,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ((pi[0], pi[1], pi[2], pi[3]), key, "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ):
        words = philox((counter[0], counter[1], counter[2], counter[3]), (k[0], k[1]))
        assert " ".join(f"{int(word):08x}" for word in words) == wanted


def test_noise_is_the_same_in_numpy_and_torch() -> None:
    seed, draw, index = (torch.tensor([2**62 + 12345]), torch.tensor([7]), torch.arange(1000))
    words = uniform_words(seed, draw, index)
    assert np.array_equal(words.numpy(), uniform_words(seed.numpy(), draw.numpy(), index.numpy()))
    assert words.min() >= 0
    assert words.max() < 2**32


def test_c_generator() -> None:
    """xorshift64* from seed 1, by its definition in arbitrary precision."""
    sampler, state = Llama2CSampler(1.0, 1.0, 1), 1
    for _ in range(5):
        state ^= state >> 12
        state = (state ^ (state << 25)) % 2**64
        state ^= state >> 27
        coin = np.float32((state * 0x2545F4914F6CDD1D % 2**64 >> 40) / 2**24)
        assert (sampler.coin(), sampler.coin()) == (coin, coin)
        sampler.accept()


@pytest.mark.parametrize("top_p", [0.5, 0.9, 1.0, 1e-9])
def test_c_sampler_draws_what_is_likely(top_p: float) -> None:
    sampler = Llama2CSampler(0.7, top_p, 5)
    drawn = set()
    for _ in range(200):
        drawn.add(sampler.draw(LOGITS))
        sampler.accept()
    assert 5 not in drawn
    assert 0 in drawn
    assert Llama2CSampler(0.0, top_p, 5).draw(LOGITS) == 0


@pytest.mark.parametrize(
    "asked",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"min_p": 2.0},
        {"max_tokens": -2},
        {"repetition_penalty": 0.0},
        {"frequency_penalty": float("inf")},
        {"seed": 2**63},
        {"seed": -1},
        {"sampler": "other"},
        {"stop": [""]},
        {"logprobs": 101},
        {"logit_bias": {1: float("nan")}},
        {"logit_bias": {1: 1e39}},
        {"presence_penalty": 1e39},
        {"temperature": 1e-38},
        {"repetition_penalty": 1e-46},
        {"top_k": 10**20},
        {"top_k": None},
        {"max_tokens": 2.5},
        {"sampler": "llama2c", "top_k": 4},
        {"sampler": "llama2c", "repetition_penalty": 1.1},
    ],
    ids=str,
)
def test_bad_parameters(asked: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**asked)
    assert "\n" not in str(caught.value)


def test_keeping_all_keeps_the_least_likely() -> None:
    """In a large vocabulary float32 sums reach 1 before the end."""
    logits = 3 * torch.randn(1, 128256, generator=torch.Generator().manual_seed(0))
    state = SamplerState(SamplingParams(temperature=1.0, top_p=1.0, seed=1), [0], 128256, CPU)
    kept = truncate(logits, stack([state], 128256, CPU))
    assert torch.isfinite(kept).all()


def test_one_stop_string_is_not_its_letters() -> None:
    assert SamplingParams(stop="end").stop == ("end",)


def test_bias_outside_the_vocabulary() -> None:
    with pytest.raises(RequestError, match="token 6"):
        SamplerState(SamplingParams(logit_bias={6: 1.0}), [0], 6, CPU)

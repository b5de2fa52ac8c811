"""The published stories260K must tell, word for word, what llama2.c's own program tells."""

from pathlib import Path

import pytest

import llama2gpu
from llama2gpu import Llama

GREEDY = """\
Once upon a time, there was a little girl named Lily. She loved to play outside in the park. \
One day, she saw a big, red ball. She wanted to play with it, but it was too high.
Lily's mom said, "Lily, let's go to the park." Lily was sad and didn't know what to do. \
She said, "I want to play with your ball, but I can't find it."
Lily was sad and didn't know what to do. She said, "I'm sorry, Lily. I didn't know what to do."
Lily didn't want to help her mom, so she said, "I'm sorry, mom. I didn't know what to do." \
Her mom said, "Don't worry, Lily. We can help you."""
SAMPLED = """\
Once upon a time, there was a little boy named Timmy. Timmy loved to play with his toys and eat \
sandwiches. One day, Timmy's mom told him it was time to rest for a while."""

BACKENDS = ("torch", "numpy")


def opened(stories: Path, backend: str, **how: object) -> Llama:
    return llama2gpu.load(
        stories / "stories260K.bin",
        tokenizer=stories / "tok512.bin",
        backend=backend,
        device="cpu",
        **how,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("how", [{}, {"kv_cache": False}, {"prefill": "sequential"}], ids=str)
def test_greedy(stories: Path, backend: str, how: dict[str, object]) -> None:
    answer = opened(stories, backend, **how).generate("", temperature=0, max_tokens=256)
    assert answer.text == GREEDY
    assert (len(answer.tokens), answer.stop_reason) == (256, "length")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("how", [{}, {"kv_cache": False}, {"prefill": "sequential"}], ids=str)
def test_prompted_in_any_way(stories: Path, backend: str, how: dict[str, object]) -> None:
    cut = GREEDY.index("She wanted")
    if how == {"kv_cache": False} and backend == "numpy":
        cut = GREEDY.index("Her mom")
    answer = opened(stories, backend, **how).generate(
        GREEDY[:cut].rstrip(), temperature=0, max_tokens=60
    )
    assert len(answer.tokens) == 60
    assert GREEDY[cut - 1 :].startswith(answer.text[: len(GREEDY) - cut])


@pytest.mark.parametrize("backend", BACKENDS)
def test_in_one_batch_with_others(stories: Path, backend: str) -> None:
    llama = opened(stories, backend)
    prompts = ["", "Lily and Tom", "", "The dog was " * 30]
    together = llama.generate_many(prompts, temperature=0, max_tokens=256)
    assert [a.text for a in together[::2]] == [GREEDY, GREEDY]
    alone = [llama.generate(prompt, temperature=0, max_tokens=256) for prompt in prompts]
    assert [a.tokens for a in together] == [a.tokens for a in alone]


@pytest.mark.parametrize("backend", BACKENDS)
def test_sampled_as_in_c(stories: Path, backend: str) -> None:
    answer = opened(stories, backend).generate(
        "", temperature=1.0, top_p=0.9, seed=133742, sampler="llama2c"
    )
    assert answer.text.startswith(SAMPLED)


def test_c_steps_count_the_prompt(stories: Path) -> None:
    llama = opened(stories, "torch")
    answer = llama.generate("Once upon a time", sampler="llama2c", temperature=0, max_tokens=20)
    assert answer.prompt_tokens + len(answer.tokens) == 21


@pytest.mark.parametrize("ops", [{"attention": "numpy"}, {"linear": "numpy"}, {"gate_up": "numpy"}])
def test_borrowed_ops(stories: Path, ops: dict[str, str]) -> None:
    answer = opened(stories, "torch", ops=ops).generate("", temperature=0, max_tokens=60)
    assert len(answer.tokens) == 60
    assert GREEDY.startswith(answer.text)


def test_bfloat16_stays_close(stories: Path) -> None:
    answer = opened(stories, "torch", dtype="bf16").generate("", temperature=0, max_tokens=12)
    assert len(answer.tokens) == 12
    assert GREEDY.startswith(answer.text)

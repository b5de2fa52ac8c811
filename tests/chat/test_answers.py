"""Conversations through the Python API: what is asked, and what ends an answer."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

import llama2gpu
from llama2gpu.api import Llama
from llama2gpu.chat import Chat
from llama2gpu.errors import RequestError
from tests.chat.models import assistant, user

GREEDY = {"temperature": 0.0, "max_tokens": 16}
BEGUN = [user("Once upon a time")]


@pytest.fixture(scope="module")
def loaded() -> Llama:
    return llama2gpu.load("stories", device="cpu")


@pytest.fixture
def llama(loaded: Llama) -> Iterator[Llama]:
    own = loaded.chat
    yield loaded
    loaded.chat = own


def test_an_answer(llama: Llama) -> None:
    plain = llama.generate("Once upon a time", **GREEDY)
    answer = llama.answer(BEGUN, **GREEDY).finish()
    assert (answer.text, answer.tokens) == (plain.text, plain.tokens)
    ids = llama.chat.prompt(BEGUN)
    assert llama.answer_ids(ids, **GREEDY).finish().tokens == plain.tokens
    assert answer.prompt_tokens == len(ids)


def test_texts_that_end_it(llama: Llama) -> None:
    whole = llama.answer(BEGUN, **GREEDY).finish().text
    first, second = whole.split()[3], whole.split()[5]
    llama.chat = replace(llama.chat, stops=(first,))
    answer = llama.answer(BEGUN, stop=second, **GREEDY).finish()
    assert (answer.text, answer.stop_reason) == (whole[: whole.index(first)], "stop")
    llama.chat = replace(llama.chat, stops=(second,))
    assert llama.answer(BEGUN, stop=[first], **GREEDY).finish().text == answer.text


def test_tokens_that_end_it(llama: Llama) -> None:
    whole = llama.answer(BEGUN, **GREEDY).finish()
    llama.chat = replace(llama.chat, stop_ids=frozenset(whole.tokens[4:5]))
    answer = llama.answer(BEGUN, **GREEDY).finish()
    cut = whole.tokens.index(whole.tokens[4])
    assert (answer.tokens, answer.stop_reason) == (whole.tokens[:cut], "eos")
    assert llama.generate("Once upon a time", **GREEDY).tokens == whole.tokens


def test_another_template(llama: Llama) -> None:
    llama.chat = Chat.of(llama.checkpoint, llama.tokenizer, "vicuna")
    text = llama.chat.render([user("a"), assistant("b"), user("c")])
    assert text.endswith("USER: a ASSISTANT: b</s>USER: c ASSISTANT:")
    with pytest.raises(RequestError, match="no messages"):
        llama.answer([])


def test_a_turn_takes_its_own_tokens_alone() -> None:
    llama = llama2gpu.load("stories", device="cpu", dtype="fp32")
    talk, before = [], 0
    for text in ("Once upon a time", "The end. One day", "Then she"):
        talk.append(user(text))
        answer = llama.answer(talk, temperature=0, max_tokens=40).finish()
        talk.append(assistant(answer.text))
        new, before = llama.stats.prefill_tokens - before, llama.stats.prefill_tokens
        assert new == answer.prompt_tokens if len(talk) == 2 else new < 20

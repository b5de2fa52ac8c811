"""OpenAI's own client against a running server."""

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from llama2gpu.api import Llama

if TYPE_CHECKING:
    import openai

    from tests.server.running import Server
else:
    openai = pytest.importorskip("openai")

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def client(server: "Server") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list()
    assert model.id == "stories"
    assert client.models.retrieve("stories") == model


def test_completion(client: openai.OpenAI, alone: Llama) -> None:
    expected = alone.generate(PROMPT, temperature=0, max_tokens=30)
    got = client.completions.create(model="stories", prompt=PROMPT, temperature=0, max_tokens=30)
    assert got.choices[0].text == expected.text
    assert got.choices[0].finish_reason == "length"
    assert got.usage is not None
    assert got.usage.prompt_tokens == expected.prompt_tokens
    assert got.usage.completion_tokens == 30
    assert got.usage.total_tokens == expected.prompt_tokens + 30


def test_stream(client: openai.OpenAI, alone: Llama) -> None:
    stream = client.completions.create(
        model="stories", prompt=PROMPT, temperature=0, max_tokens=50, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    assert text == alone.generate(PROMPT, temperature=0, max_tokens=50).text
    assert len(chunks) > 2
    assert not any(chunk.usage for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 50
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert reasons[-1] == "length"
    assert set(reasons[:-1]) <= {None}


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(client: openai.OpenAI, alone: Llama, stream: bool) -> None:
    expected = alone.generate(PROMPT, temperature=0, max_tokens=12, logprobs=3)
    answer: Any = client.completions.create(
        model="stories", prompt=PROMPT, temperature=0, max_tokens=12, logprobs=3, stream=stream
    )
    found = [c.choices[0].logprobs for c in (answer if stream else [answer]) if c.choices]
    tokens = [token for part in found for token in part.tokens]
    values = [value for part in found for value in part.token_logprobs]
    offsets = [offset for part in found for offset in part.text_offset]
    assert "".join(tokens) == expected.text
    assert values == pytest.approx([token.logprob for token in expected.logprobs], abs=1e-4)
    assert offsets == [len("".join(tokens[:i])) for i in range(len(tokens))]
    for part in found:
        for token, value, top in zip(
            part.tokens, part.token_logprobs, part.top_logprobs, strict=True
        ):
            assert len(top) == 3
            assert top[token] == pytest.approx(value, abs=1e-4)


def test_stop_string(client: openai.OpenAI, alone: Llama) -> None:
    whole = alone.generate(PROMPT, temperature=0, max_tokens=60).text
    stop = whole[40:46]
    got = client.completions.create(
        model="stories", prompt=PROMPT, temperature=0, max_tokens=60, stop=[stop, "never"],
        logprobs=1,
    )  # fmt: skip
    assert got.choices[0].text == whole[: whole.index(stop)]
    assert got.choices[0].finish_reason == "stop"


def test_several_answers(client: openai.OpenAI, alone: Llama) -> None:
    def ask(**more: Any) -> list[str]:
        got = client.completions.create(
            model="stories", prompt=[PROMPT, "There was"], n=2, max_tokens=20, seed=7, **more
        )
        assert [choice.index for choice in got.choices] == [0, 1, 2, 3]
        return [choice.text for choice in got.choices]

    texts = ask()
    assert texts == ask()
    assert len(set(texts)) == 4
    one = alone.generate(PROMPT, seed=8, temperature=1, top_p=1, max_tokens=20)
    assert texts[1] == one.text


def test_bias_and_penalties(client: openai.OpenAI, alone: Llama) -> None:
    first = alone.generate(PROMPT, temperature=0, max_tokens=1).tokens[0]
    more: Any = {"presence_penalty": 1.5, "frequency_penalty": 1.0}
    bias = {first: -100.0}
    expected = alone.generate(PROMPT, temperature=0, max_tokens=40, logit_bias=bias, **more)
    got = client.completions.create(
        model="stories", prompt=PROMPT, temperature=0, max_tokens=40,
        logit_bias={str(first): -100}, **more,
    )  # fmt: skip
    assert got.choices[0].text == expected.text
    assert first not in expected.tokens


def test_echo(client: openai.OpenAI, alone: Llama) -> None:
    got = client.completions.create(
        model="stories", prompt=PROMPT, temperature=0, max_tokens=5, echo=True
    )
    assert got.choices[0].text == PROMPT + alone.generate(PROMPT, temperature=0, max_tokens=5).text


def test_no_tokens_at_all(client: openai.OpenAI) -> None:
    got = client.completions.create(model="stories", prompt=PROMPT, max_tokens=0, echo=True)
    assert got.choices[0].text == PROMPT
    assert got.choices[0].finish_reason == "length"


def test_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as failed:
        client.completions.create(model="gpt-2", prompt=PROMPT)
    assert failed.value.code == "model_not_found"
    assert failed.value.type == "invalid_request_error"


def test_prompt_that_is_too_long(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="context"):
        client.completions.create(model="stories", prompt="word " * 2000)
    with pytest.raises(openai.BadRequestError, match="context"):
        client.completions.create(model="stories", prompt="word " * 100_000, stream=True)


def mixed(number: int) -> dict[str, Any]:
    """Greedy requests of which no two are alike."""
    starts = "Once upon a time", "", "There was a dog", "Tim and Sue", "The end. A new day"
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": 10 + 17 * number}
    asked["prompt"] = starts[number % len(starts)] + " and then" * (number // 5)
    if number % 3 == 0:
        asked["stop"] = [". He", "\n"]
    if number % 4 == 1:
        asked["frequency_penalty"] = 0.5
    return asked


def test_streams_at_once_are_as_alone(client: openai.OpenAI, alone: Llama) -> None:
    def stream(asked: dict[str, Any]) -> str:
        chunks = client.completions.create(model="stories", stream=True, **asked)
        return "".join(choice.text for chunk in chunks for choice in chunk.choices)

    asked = [mixed(number) for number in range(16)]
    with ThreadPoolExecutor(16) as pool:
        got = list(pool.map(stream, asked))
    assert got == [alone.generate(**one).text for one in asked]


def test_chat(client: openai.OpenAI, alone: Llama) -> None:
    messages: Any = [{"role": "user", "content": "Tell me of a dog."}]
    expected = alone.answer(messages, temperature=0, max_tokens=30).finish()
    got = client.chat.completions.create(
        model="stories", messages=messages, temperature=0, max_tokens=30, logprobs=True,
        top_logprobs=2,
    )  # fmt: skip
    (choice,) = got.choices
    assert (choice.message.role, choice.message.content) == ("assistant", expected.text)
    assert got.usage is not None
    assert got.usage.prompt_tokens == expected.prompt_tokens
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    data = b"".join(bytes(token.bytes or []) for token in choice.logprobs.content)
    assert data.decode() == expected.text
    assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)


def test_chat_streams(client: openai.OpenAI, alone: Llama) -> None:
    messages: Any = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Tell me of a dog."}]},
    ]
    expected = alone.answer(messages, temperature=0, max_tokens=25).finish()
    stream: Any = client.chat.completions.create(
        model="stories", messages=messages, temperature=0, max_completion_tokens=25, n=2,
        stream=True, stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    choices = [choice for chunk in chunks for choice in chunk.choices]
    for index in range(2):
        own = [choice for choice in choices if choice.index == index]
        assert own[0].delta.role == "assistant"
        assert "".join(choice.delta.content or "" for choice in own) == expected.text
        assert own[-1].finish_reason == "length"
    assert chunks[-1].usage.completion_tokens == 50
    assert chunks[-1].usage.prompt_tokens == expected.prompt_tokens


@pytest.mark.parametrize(
    "wrong",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"response_format": {"type": "json_object"}},
        {"messages": []},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "wizard", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        {"top_logprobs": 3},
    ],
)
def test_chat_that_is_not_served(client: openai.OpenAI, wrong: dict[str, Any]) -> None:
    asked: Any = {"model": "stories", "messages": [{"role": "user", "content": "Hi"}]} | wrong
    with pytest.raises(openai.BadRequestError) as failed:
        client.chat.completions.create(**asked)
    assert failed.value.param == next(iter(wrong))

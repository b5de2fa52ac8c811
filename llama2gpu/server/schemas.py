"""Bodies of requests. Types are held to; fields that are not known are ignored, as OpenAI does."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from llama2gpu.errors import RequestError
from llama2gpu.sampling import LARGEST, SamplingParams
from llama2gpu.server.errors import APIError
from llama2gpu.tokenizer import well_formed

Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
#: A list is refused at its first wrong item: a complaint of each takes seconds.
Ids = Annotated[list[int], Field(fail_fast=True)]
#: Texts, or texts as ids.
Prompt = (
    str
    | Ids
    | Annotated[list[str], Field(fail_fast=True)]
    | Annotated[list[Ids], Field(fail_fast=True)]
)

MAX_N, MAX_STOPS, MAX_STOP_LENGTH, MAX_BIAS = 128, 16, 1000, 1024


class Body(BaseModel):
    """Any body."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class StreamOptions(Body):
    """What a stream tells besides its text."""

    include_usage: bool | None = None


class Sampling(Body):
    """What completions and chats share; null is the same as not given.

    top_k, min_p, repetition_penalty and ignore_eos are not OpenAI's.
    """

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: (
        Annotated[str, Field(max_length=MAX_STOP_LENGTH)]
        | Annotated[
            list[Annotated[str, Field(max_length=MAX_STOP_LENGTH)]], Field(max_length=MAX_STOPS)
        ]
        | None
    ) = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: (
        Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MAX_BIAS)]
        | None
    ) = None
    user: str | None = None
    top_k: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=1e-3, le=1e3)] | None = None
    ignore_eos: bool | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with what it has used."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def params(self, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        """How to sample, with OpenAI's defaults. Raises `APIError` for what can't be."""
        if self.stream_options is not None and not self.stream:
            raise APIError(400, "stream_options needs stream", param="stream_options")
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        temperature = 1.0 if self.temperature is None else self.temperature
        try:
            return SamplingParams(
                max_tokens=max_tokens,
                temperature=temperature if temperature >= 1e-4 else 0.0,
                top_p=self.top_p or (1.0 if self.top_p is None else 1e-6),  # 0 is the likeliest
                top_k=self.top_k or 0,
                min_p=self.min_p or 0.0,
                repetition_penalty=self.repetition_penalty or 1.0,
                presence_penalty=self.presence_penalty or 0.0,
                frequency_penalty=self.frequency_penalty or 0.0,
                logit_bias=_bias(self.logit_bias or {}),
                seed=None if self.seed is None else self.seed % (1 << 63),
                stop=tuple(text for text in stop if text),
                ignore_eos=bool(self.ignore_eos),
                logprobs=logprobs,
            )
        except RequestError as error:
            raise APIError(400, str(error)) from error


def _bias(given: dict[str, float]) -> dict[int, float]:
    if not all(token.isascii() and token.isdigit() and len(token) < 20 for token in given):
        raise APIError(400, "logit_bias: its keys are token ids", param="logit_bias")
    return {int(token): bias for token, bias in given.items()}


class CompletionBody(Sampling):
    """`POST /v1/completions`."""

    prompt: Prompt
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None

    def check(self) -> None:
        """Raises `APIError` for what OpenAI's API has and this server has not."""
        if self.best_of not in (None, self.n or 1):
            raise APIError(400, "best_of: only the same as n is served", param="best_of")
        if self.suffix:
            raise APIError(400, "suffix: this model writes at the end alone", param="suffix")
        if self.echo and self.logprobs is not None:
            raise APIError(400, "echo with logprobs is not served", param="echo")

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, one or many, each a text or its ids."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if not prompt:
            raise APIError(400, "prompt: an empty list holds none", param="prompt")
        if isinstance(prompt[0], int):
            return [prompt]
        return list(prompt)


class Part(Body):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class Message(Body):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(fail_fast=True)]
    name: str | None = None

    @property
    def plain(self) -> dict[str, str]:
        """Role and text, as a template takes them; to a template a developer is the system."""
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": well_formed(text)}


class ChatBody(Sampling):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    response_format: dict[str, Any] | None = None

    def check(self) -> None:
        """Raises `APIError` for what OpenAI's API has and this server has not."""
        for name in ("tools", "functions"):
            if getattr(self, name):
                raise APIError(400, f"{name}: this server calls none", param=name)
        if (self.response_format or {}).get("type", "text") != "text":
            message = "response_format: only text is served"
            raise APIError(400, message, param="response_format")
        if self.top_logprobs is not None and not self.logprobs:
            raise APIError(400, "top_logprobs needs logprobs", param="top_logprobs")


class TokenizeBody(Body):
    """`POST /tokenize`. add_special_tokens: begin with the token that starts a text."""

    prompt: str
    add_special_tokens: bool = True


class DetokenizeBody(Body):
    """`POST /detokenize`."""

    tokens: Annotated[list[Annotated[int, Field(ge=0, lt=1 << 31)]], Field(fail_fast=True)]


class JobBody(Body):
    """`POST /jobs/` of llama.go."""

    id: Annotated[str, Field(max_length=100)]
    prompt: str

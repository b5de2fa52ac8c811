"""Pieces of text as the objects of OpenAI's API: completions and chats, whole and in a stream."""

import time
from collections.abc import Iterable
from typing import Any, Protocol

from llama2gpu.request import Token
from llama2gpu.server.call import Call, Piece
from llama2gpu.server.service import new_id
from llama2gpu.tokenizer import Tokenizer

_FINISH = {"eos": "stop", "stop": "stop", "length": "length", "context": "length"}


def finish(piece: Piece) -> str | None:
    """Why an answer ended, in OpenAI's words."""
    return None if piece.reason is None else _FINISH.get(piece.reason, "stop")


def counts(call: Call, n: int) -> dict[str, int]:
    """Tokens of a call's prompts, each counted once, and of its answers so far."""
    prompts = sum(len(answer.request.prompt) for answer in call.answers[::n])
    answers = sum(answer.count for answer in call.answers)
    return {"prompt_tokens": prompts, "completion_tokens": answers}


def usage(call: Call, n: int) -> dict[str, int]:
    """The same and their sum, as OpenAI's API has them."""
    counted = counts(call, n)
    return {**counted, "total_tokens": sum(counted.values())}


class Shape(Protocol):
    """How one kind of answer looks."""

    def opening(self) -> Iterable[dict[str, Any]]:
        """Choices that a stream begins with."""

    def choice(self, index: int, piece: Piece) -> dict[str, Any]:
        """A piece of a stream as a choice."""

    def whole_choice(self, index: int, piece: Piece) -> dict[str, Any]:
        """A whole answer as a choice."""

    def envelope(self, choices: list[dict[str, Any]], *, chunk: bool) -> dict[str, Any]:
        """The object around choices."""


class _Named:
    """The fields that all objects of one call have in common."""

    prefix: str
    kinds: tuple[str, str]

    def __init__(self, model: str, tokenizer: Tokenizer, logprobs: bool) -> None:
        self.tokenizer, self.logprobs = tokenizer, logprobs
        self._same = {"id": new_id(self.prefix), "created": int(time.time()), "model": model}

    def envelope(self, choices: list[dict[str, Any]], *, chunk: bool) -> dict[str, Any]:
        """The object around choices; chunk: one of a stream."""
        return {**self._same, "object": self.kinds[chunk], "choices": choices}

    def _bytes(self, id: int) -> bytes:
        token = self.tokenizer.token(id)
        return b"" if token.control else token.text

    def _name(self, id: int) -> str:
        return self.tokenizer.token(id).text.decode("utf-8", "replace")


class CompletionShape(_Named):
    """`text_completion`. echoes: texts that stand before the answers, by number."""

    prefix, kinds = "cmpl", ("text_completion", "text_completion")

    def __init__(
        self, model: str, tokenizer: Tokenizer, logprobs: bool, echoes: dict[int, str]
    ) -> None:
        super().__init__(model, tokenizer, logprobs)
        self.echoes = echoes
        self._offsets: dict[int, int] = {}

    def opening(self) -> Iterable[dict[str, Any]]:
        """The prompts, where they are to be repeated."""
        return [self._choice(index, text, None, None) for index, text in self.echoes.items()]

    def choice(self, index: int, piece: Piece) -> dict[str, Any]:
        """Text, its tokens and, at the end, why it ended."""
        return self._choice(index, piece.text, self._logprobs(index, piece), finish(piece))

    def whole_choice(self, index: int, piece: Piece) -> dict[str, Any]:
        """The same of a whole answer, after the prompt where that is to be repeated."""
        text = self.echoes.get(index, "") + piece.text
        return self._choice(index, text, self._logprobs(index, piece), finish(piece))

    def _choice(
        self, index: int, text: str, logprobs: dict[str, Any] | None, reason: str | None
    ) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, index: int, piece: Piece) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        names = [self._name(token.id) for token in piece.tokens]
        at, offsets = self._offsets.get(index, 0), []
        for name in names:
            offsets.append(at)
            at += len(name)
        self._offsets[index] = at
        return {
            "tokens": names,
            "token_logprobs": [token.logprob for token in piece.tokens],
            "top_logprobs": [self._likeliest(token) for token in piece.tokens],
            "text_offset": offsets,
        }

    def _likeliest(self, token: Token) -> dict[str, float]:
        found: dict[str, float] = {}
        for id, logprob in (*token.top, (token.id, token.logprob)):
            found.setdefault(self._name(id), logprob)
        return found


class ChatShape(_Named):
    """`chat.completion`. choices: how many answers there are."""

    prefix, kinds = "chatcmpl", ("chat.completion", "chat.completion.chunk")

    def __init__(self, model: str, tokenizer: Tokenizer, logprobs: bool, choices: int) -> None:
        super().__init__(model, tokenizer, logprobs)
        self.choices = choices

    def opening(self) -> Iterable[dict[str, Any]]:
        """Whose turn it is, for each answer."""
        delta = {"role": "assistant", "content": ""}
        return [self._delta(index, dict(delta), None, None) for index in range(self.choices)]

    def choice(self, index: int, piece: Piece) -> dict[str, Any]:
        """Text, its tokens and, at the end, why it ended."""
        delta = {"content": piece.text} if piece.text else {}
        return self._delta(index, delta, self._logprobs(piece), finish(piece))

    def whole_choice(self, index: int, piece: Piece) -> dict[str, Any]:
        """A message of the assistant."""
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(piece),
            "finish_reason": finish(piece),
        }

    def _delta(
        self, index: int, delta: dict[str, str], logprobs: object, reason: str | None
    ) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, piece: Piece) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        content = [
            {
                **self._entry(token.id, token.logprob),
                "top_logprobs": [self._entry(id, logprob) for id, logprob in token.top],
            }
            for token in piece.tokens
        ]
        return {"content": content, "refusal": None}

    def _entry(self, id: int, logprob: float) -> dict[str, Any]:
        data = self._bytes(id)
        return {"token": self._name(id), "logprob": logprob, "bytes": list(data)}

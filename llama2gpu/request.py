"""A request and the sequence that it becomes while the engine works on it."""

import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch

from llama2gpu.errors import ContextError, RequestError
from llama2gpu.sampling import SamplerState, SamplingParams

#: Why an answer ended: a stop id, a stop string, its own bound, the context's end, a cancellation.
StopReason = Literal["eos", "stop", "length", "context", "cancelled"]


class Token(NamedTuple):
    """A generated token: its id, its log-probability, and the likeliest (id, log-probability)."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def check_ids(ids: Seq[int], vocab: int) -> None:
    """Raises `RequestError` for an id that no token has."""
    for id in ids:
        if not 0 <= id < vocab:
            raise RequestError(f"token {id} is outside the vocabulary of {vocab}")


@dataclass(frozen=True)
class Request:
    """A prompt as token ids, how to sample, and the ids that end the answer."""

    prompt: Seq[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    stop_ids: frozenset[int] = frozenset()

    def check(self, vocab: int, context: int) -> None:
        """Raises `RequestError` where the prompt can't be served by such a model."""
        if not self.prompt:
            raise RequestError("the prompt is empty and the tokenizer has no BOS: give some text")
        if len(self.prompt) > context:
            raise ContextError(
                f"the prompt has {len(self.prompt)} tokens but the context holds {context}: "
                "shorten the prompt, or ask for more (--ctx)"
            )
        check_ids(self.prompt, vocab)


class Sequence:
    """A request under way.

    output: what was generated, a stop id left out; all else follows from it. tokens: prompt and
    output. cached: tokens that the model has seen. digests: what names the tokens up to the end of
    each page, as far as anybody asked. reason: why it ended, None while it runs; error: what
    cancelled it, where the engine could not go on with it.
    """

    def __init__(self, request: Request, vocab: int, context: int, device: torch.device) -> None:
        request.check(vocab, context)
        self.request = request
        self.state = SamplerState(request.params, request.prompt, vocab, device)
        self.tokens = list(request.prompt)
        self.output: list[Token] = []
        self.room = context - len(request.prompt) + 1  # the last token needs no place
        self.cached = 0
        self.pages: list[int] = []
        self.digests: list[bytes] = []
        self.reason: StopReason | None = "length" if request.params.max_tokens == 0 else None
        self.error: RequestError | None = None
        self.added = time.perf_counter()
        self.first_token_at: float | None = None

    @property
    def decoding(self) -> bool:
        """Whether the whole prompt has been seen and only the last token is new."""
        return bool(self.output) and len(self.tokens) - self.cached == 1

    @property
    def left(self) -> int:
        """Tokens that may still be drawn."""
        bound = self.request.params.max_tokens
        return min(self.room, self.room if bound is None else bound) - len(self.output)

    def fail(self, error: RequestError) -> None:
        """Ends a sequence that can't go on."""
        self.error, self.reason = error, "cancelled"

    def accept(self, token: Token) -> bool:
        """Takes the next token; False where it is a stop id, which ends the text unseen."""
        if self.first_token_at is None:
            self.first_token_at = time.perf_counter()
        if token.id in self.request.stop_ids and not self.request.params.ignore_eos:
            self.reason = "eos"
            return False
        self.output.append(token)
        self.settle()
        return True

    def settle(self) -> None:
        """Brings all else in line with `output`, also where it was interrupted in that."""
        known = len(self.tokens) - len(self.request.prompt)
        self.tokens += [token.id for token in self.output[known:]]
        self.cached = min(self.cached, len(self.tokens) - 1)  # the last one is to be taken yet
        self.state.catch_up([token.id for token in self.output[len(self.state.drawn) :]])
        if self.reason is None and self.left <= 0:
            bound = self.request.params.max_tokens
            self.reason = "context" if bound is None or len(self.output) < bound else "length"

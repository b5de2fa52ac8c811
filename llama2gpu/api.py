"""The Python API: load a model, generate, stream."""

import time
from collections.abc import Collection, Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import Any, Literal
from weakref import WeakValueDictionary

import torch

from llama2gpu.backends import auto_order, choose_backend
from llama2gpu.backends.base import Backend
from llama2gpu.build import build_model, check_context, weight_kind, weight_type
from llama2gpu.chat import Chat, Message
from llama2gpu.checkpoints import SHIPPED, Checkpoint, open_checkpoint
from llama2gpu.checkpoints.weights import Progress
from llama2gpu.engine import CHUNK, Engine, Stats
from llama2gpu.errors import RequestError
from llama2gpu.open_quantizer import end_ids, open_quantizer, read_spec
from llama2gpu.plan import Need
from llama2gpu.plan_fit import LEAST, cache_pages, check_memory
from llama2gpu.quant import QuantSpec
from llama2gpu.quantizer import Outcome
from llama2gpu.request import Request, Sequence, StopReason, Token
from llama2gpu.sampling import SamplingParams
from llama2gpu.text import TextStream
from llama2gpu.tokenizer import Tokenizer, tokenizer_of
from llama2gpu.weights import DTYPES, dtype_name

PREFILL = ("parallel", "sequential")
KV_DTYPES = {"auto": None, "int8": torch.int8}

#: What is loaded where nothing is named: the model that comes with the package.
DEFAULT_MODEL = SHIPPED["stories"]

Prompt = str | Seq[int]


@dataclass(frozen=True)
class Completion:
    """An answer: its text, its tokens, how many tokens its prompt had and why it ended."""

    text: str
    tokens: list[int]
    prompt_tokens: int
    stop_reason: StopReason
    seed: int
    logprobs: list[Token]


class Generation(Iterator[str]):
    """An answer under way: iterate for its text, piece by piece; `completion` has it so far.

    Several may be consumed in any order, also from several threads. One that is dropped is
    cancelled at the next step.
    """

    def __init__(self, llama: "Llama", request: Request) -> None:
        self._llama = llama
        self._text = TextStream(llama.tokenizer.decoder(request.prompt), request.params.stop)
        with llama.lock:
            self.sequence = llama.engine.add(request)
            llama.live[self.sequence] = self
        self._pieces: list[str] = []
        self._taken = 0
        self._flushed = False

    def __next__(self) -> str:
        """The next piece of text, never empty."""
        with self._llama.lock:
            while not self._pieces and not self._flushed:
                if self.sequence.reason is None:
                    self._llama.step()
                else:
                    self._close()
            if self._pieces:
                return self._pieces.pop(0)
        if self.sequence.error is not None:
            raise self.sequence.error
        raise StopIteration

    def catch_up(self) -> None:
        """Takes the sequence's new tokens; ends it where one completes a stop string."""
        while self._taken < len(self.sequence.output) and not self._text.stopped:
            self._taken += 1
            self._release(self._text.push(self.sequence.output[self._taken - 1].id))
        if self._text.stopped:
            self._llama.engine.cancel(self.sequence, "stop")
            self.sequence.reason = "stop"  # also where its last token completed the string

    def released(self) -> str:
        """The text that has come since the last time, for who steps the engine on his own."""
        with self._llama.lock:
            if self.sequence.reason is not None:
                self._close()
            text = "".join(self._pieces)
            self._pieces.clear()
        return text

    def cancel(self) -> None:
        """Ends the answer here and frees its memory."""
        with self._llama.lock:
            self._llama.engine.cancel(self.sequence)
            self._close()

    @property
    def completion(self) -> Completion:
        """The answer as far as it has come."""
        output = list(self.sequence.output)
        return Completion(
            text=self._text.text,
            tokens=[token.id for token in output],
            prompt_tokens=len(self.sequence.request.prompt),
            stop_reason=self.sequence.reason or "cancelled",
            seed=self.sequence.state.seed,
            logprobs=output if self.sequence.request.params.logprobs is not None else [],
        )

    def finish(self) -> Completion:
        """Runs to the end."""
        for _ in self:
            pass
        return self.completion

    def _release(self, text: str) -> None:
        if text:
            self._pieces.append(text)

    def _close(self) -> None:
        if not self._flushed:
            self._flushed = True
            if self.sequence.output:
                self._release(self._text.flush())


class Llama:
    """A model, its tokenizer and an engine, which threads may share."""

    def __init__(self, checkpoint: Checkpoint, tokenizer: Tokenizer, engine: Engine) -> None:
        self.checkpoint, self.tokenizer, self.engine = checkpoint, tokenizer, engine
        self.live: WeakValueDictionary[Sequence, Generation] = WeakValueDictionary()
        self.lock = RLock()
        self.load_seconds = 0.0
        #: What became of each matrix that was to be quantized.
        self.outcomes: list[Outcome] = []
        #: Of most matrices, as `choose_backend` takes it.
        self.weight_kind = "dense"

    @property
    def backend(self) -> Backend:
        """The backend that computes."""
        return self.engine.model.backend

    @property
    def dtype(self) -> str:
        """The type of the weights: fp32, fp16 or bf16."""
        return dtype_name(self.engine.model.dtype)

    @property
    def stats(self) -> Stats:
        """What the engine did so far."""
        return self.engine.stats

    def generate(self, prompt: Prompt, **params: Any) -> Completion:
        """The answer to one prompt; keywords are those of `SamplingParams`."""
        return self.stream(prompt, **params).finish()

    def generate_many(self, prompts: Seq[Prompt], **params: Any) -> list[Completion]:
        """The answers to several prompts, computed together."""
        asked = SamplingParams(**params)
        requests = [self.request(prompt, asked) for prompt in prompts]
        for request in requests:
            self.engine.check(request)
        return [g.finish() for g in [Generation(self, request) for request in requests]]

    def stream(self, prompt: Prompt, **params: Any) -> Generation:
        """The answer to one prompt as an iterator of text; keywords as for `generate`."""
        return Generation(self, self.request(prompt, SamplingParams(**params)))

    @cached_property
    def chat(self) -> Chat:
        """How the model talks, by its own chat template or what `Chat.of` finds; may be set."""
        return Chat.of(self.checkpoint, self.tokenizer)

    def answer(self, messages: Seq[Message], **params: Any) -> Generation:
        """The model's turn in a conversation; keywords as for `generate`.

        messages: each has a "role" and a "content", and none of these texts becomes a control
        token. Raises `RequestError` for messages that the chat template does not take.
        """
        return self.answer_ids(self.chat.prompt(messages), **params)

    def answer_ids(self, prompt: Seq[int], **params: Any) -> Generation:
        """The same for a conversation as `chat.prompt` gives it."""
        asked = SamplingParams(**params)
        asked = replace(asked, stop=(*asked.stop, *self.chat.stops))
        return Generation(self, self.request(prompt, asked, self.chat.stop_ids))

    def step(self) -> None:
        """One step of the engine; each token goes to its generation, and who left is cancelled."""
        with self.lock:
            for sequence in [*self.engine.running, *self.engine.waiting]:
                if sequence not in self.live:
                    self.engine.cancel(sequence)
            self.engine.step()
            for generation in list(self.live.values()):
                generation.catch_up()

    def request(
        self, prompt: Prompt, params: SamplingParams, stop_ids: Collection[int] | None = None
    ) -> Request:
        """A prompt as the engine takes it: its ids, its bound and its stop ids.

        stop_ids: those of the checkpoint if None.
        """
        if isinstance(prompt, bytes):
            raise RequestError("the prompt is bytes: give text, or token ids")
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if stop_ids is None:
            stop_ids = end_ids(self.checkpoint, self.tokenizer)
        if params.sampler == "llama2c":
            # that program's steps count the prompt, and it stops at BOS alone
            steps = params.max_tokens
            if steps is not None:
                params = replace(params, max_tokens=max(steps - len(ids) + 1, 0))
            stop_ids = () if self.tokenizer.bos_id is None else (self.tokenizer.bos_id,)
        return Request(ids, params, frozenset(stop_ids))


def load(
    model: str | Path = DEFAULT_MODEL,
    *,
    tokenizer: str | Path | Tokenizer | None = None,
    backend: str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    ops: Mapping[str, str] | None = None,
    quant: str | QuantSpec = "none",
    calibration: str | Path | None = None,
    context: int | None = None,
    rope_theta: float | None = None,
    rope_scaling: str | None = None,
    norm_eps: float | None = None,
    kv_cache: bool = True,
    kv_dtype: str = "auto",
    prefill: str = "parallel",
    max_sequences: int = 256,
    max_pages: int | Literal["fit"] | None = None,
    progress: Progress = lambda done, total: None,
) -> Llama:
    """Loads a checkpoint of any format, its tokenizer and a backend.

    model: file, folder, Hub name, or "stories", which comes with the package.
    tokenizer: one, or where it is, if that is not with the model.
    ops: single ops from other backends, {op: backend}.
    context: positions of a sequence at most; where these are more than the model's own, the logger
    "llama2gpu" has a warning.
    rope_theta, norm_eps: in place of what the checkpoint says, and so is rope_scaling, such as
    "linear:4", "llama3:8" or "yarn:4", whose factor the context grows by.
    quant: "none", a `QuantSpec`, or text such as "int4" or "int8:32" (`quant.spec.parse_spec`).
    calibration: a text file for gptq and awq.
    kv_dtype: of cached keys and values; "auto" as the activations, "int8" about half of 16 bits.
    kv_cache=False recomputes every step; prefill="sequential" takes prompts a token at a time.
    max_sequences: how many run at once; the rest wait in order.
    max_pages: pages of 64 tokens in the cache; "fit": for max_sequences of the whole context, or
    what there is memory for; None: it grows as far as it must.
    Raises a `Llama2GPUError` that says what is wrong and what mends it.
    """
    began = time.perf_counter()
    for name, value, known in (
        ("dtype", dtype, ("auto", *DTYPES)),
        ("kv_dtype", kv_dtype, KV_DTYPES),
        ("prefill", prefill, PREFILL),
    ):
        if value not in known:
            raise RequestError(f"{name} is {value!r}: choose {', '.join(known)}")
    server = choose_backend(backend, device, ops)  # what is wrong is told before the Hub is asked
    spec = read_spec(quant, calibration)
    checkpoint = open_checkpoint(
        model, rope_theta=rope_theta, rope_scaling=rope_scaling, norm_eps=norm_eps
    )
    kind = weight_kind(checkpoint, spec)
    if backend == "auto" and auto_order(server.device, kind) != auto_order(server.device):
        server = choose_backend(backend, device, ops, kind)
    words = tokenizer_of(checkpoint, tokenizer)
    check_context(context, checkpoint)
    kv_type = KV_DTYPES[kv_dtype]
    need = Need(context or min(checkpoint.config.context, LEAST), kv_dtype=kv_type)
    check_memory(checkpoint, server, weight_type(checkpoint, server.device, dtype), spec, need)
    quantizer = None
    outcomes: list[Outcome] = []
    if spec is not None:
        quantizer = open_quantizer(checkpoint, spec, server, words, calibration, outcomes.append)
    net = build_model(checkpoint, server, dtype, context, progress, quantizer)
    if max_pages is not None:
        asked = None if max_pages == "fit" else max_pages
        max_pages = cache_pages(net, kv_type, max_sequences, asked)
    engine = Engine(
        net,
        chunk=1 if prefill == "sequential" else CHUNK,
        recompute=not kv_cache,
        max_sequences=max_sequences,
        max_pages=max_pages,
        kv_dtype=kv_type,
    )
    llama = Llama(checkpoint, words, engine)
    llama.outcomes, llama.weight_kind = outcomes, kind
    llama.load_seconds = time.perf_counter() - began
    return llama

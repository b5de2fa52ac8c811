"""What a request asks of sampling, as tensors for `sample` or as llama2.c's own sampler."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch

from llama2gpu.errors import RequestError
from llama2gpu.ops.sample import SampleParams

SAMPLERS = ("default", "llama2c")

#: No parameter is larger: float32 logits must stay numbers.
LARGEST = 1e6


@dataclass(frozen=True)
class SamplingParams:
    """How one request's tokens are chosen and when it ends.

    max_tokens: new tokens at most; None until the model stops or the context is full.
    temperature: 0 is greedy. top_k: 0 keeps all. top_p, min_p: 1 and 0 keep all.
    repetition_penalty: over prompt and output, 1 is none; presence_penalty and
        frequency_penalty: over the output, 0 is none. logit_bias: token to addend.
    seed: None draws one. sampler: "default", or "llama2c" for that program's random numbers.
    stop: strings that end the text and are not part of it. ignore_eos: stop ids don't end it.
    logprobs: how many likeliest tokens to report beside each token; None reports nothing.
    """

    max_tokens: int | None = 512
    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    sampler: str = "default"
    stop: str | Sequence[str] = ()
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for name in ("max_tokens", "top_k", "seed", "logprobs"):
            value = getattr(self, name)
            if not isinstance(value, int) and (value is not None or name == "top_k"):
                raise RequestError(f"{name} is {value!r}: give a whole number")
        numbers = {f.name: getattr(self, f.name) for f in fields(self)}
        numbers |= {f"logit_bias of {token}": bias for token, bias in self.logit_bias.items()}
        for name, value in numbers.items():
            if isinstance(value, float) and not abs(value) <= LARGEST:
                raise RequestError(f"{name} is {value}: give a number of at most {LARGEST:g}")
        for name, ok, want in (
            ("max_tokens", self.max_tokens is None or self.max_tokens >= 0, "0 or more"),
            (
                "temperature",
                self.temperature == 0 or self.temperature >= 1e-4,
                "0 (greedy) or 1e-4 up",
            ),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", 0 <= self.top_k < 1 << 31, "0 (all) or more, below 2^31"),
            ("min_p", 0 <= self.min_p <= 1, "0 to 1"),
            ("repetition_penalty", 1e-3 <= self.repetition_penalty <= 1e3, "0.001 to 1000"),
            ("seed", self.seed is None or 0 <= self.seed < 1 << 63, "at least 0 and below 2^63"),
            ("sampler", self.sampler in SAMPLERS, " or ".join(SAMPLERS)),
            ("stop", all(self.stop), "strings that are not empty"),
            ("logprobs", self.logprobs is None or 0 <= self.logprobs <= 100, "0 to 100"),
        ):
            if not ok:
                raise RequestError(f"{name} is {getattr(self, name)}: it must be {want}")
        if self.sampler == "llama2c" and self.penalized:
            raise RequestError("sampler llama2c knows no penalties and no bias: leave them out")
        if self.sampler == "llama2c" and (self.top_k or self.min_p):
            raise RequestError("sampler llama2c knows no top-k and no min-p: leave them out")

    @property
    def penalized(self) -> bool:
        """Whether a bias or a penalty changes the logits."""
        return bool(self.logit_bias) or self.counted

    @property
    def counted(self) -> bool:
        """Whether a penalty needs to know which tokens came before."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)


class SamplerState:
    """What sampling remembers of one sequence: its seed, what was drawn, and its counts."""

    def __init__(
        self, params: SamplingParams, prompt: Sequence[int], vocab: int, device: torch.device
    ) -> None:
        self.params = params
        self.seed = secrets.randbits(63) | 1 if params.seed is None else params.seed
        if params.sampler == "llama2c" and self.seed == 0:  # that program asks the clock
            self.seed = secrets.randbits(63) | 1
        self.drawn: list[int] = []
        self.c_sampler = None
        if params.sampler == "llama2c":
            self.c_sampler = Llama2CSampler(params.temperature, params.top_p, self.seed)
        self.bias = self.prompted = self.generated = None
        if params.logit_bias:
            self.bias = _bias(params.logit_bias, vocab).to(device)
        if params.counted:
            self.prompted = torch.zeros(vocab, dtype=torch.bool, device=device)
            self.prompted[torch.tensor(prompt, dtype=torch.int64, device=device)] = True
            self.generated = torch.zeros(vocab, dtype=torch.int32, device=device)

    def catch_up(self, tokens: Sequence[int]) -> None:
        """Counts tokens that were drawn since; one that was counted by half is counted again."""
        for token in tokens:
            if self.generated is not None:
                self.generated[token] = self.drawn.count(token) + 1
            if self.c_sampler is not None:
                self.c_sampler.accept()
            self.drawn.append(token)  # last: till then, all of it may be done once more


def stack(states: Sequence[SamplerState], vocab: int, device: torch.device) -> SampleParams:
    """The states of S sequences as the tensors that `sample` takes."""
    asked = [state.params for state in states]

    def put(values: Sequence[float], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype).to(device)

    def rows(parts: list[torch.Tensor | None], dtype: torch.dtype) -> torch.Tensor | None:
        if all(part is None for part in parts):
            return None
        blank = torch.zeros(vocab, dtype=dtype, device=device)
        return torch.stack([blank if part is None else part for part in parts])

    return SampleParams(
        temperature=put([p.temperature for p in asked]),
        top_k=put([p.top_k for p in asked], torch.int64),
        top_p=put([p.top_p for p in asked]),
        min_p=put([p.min_p for p in asked]),
        seed=put([state.seed for state in states], torch.int64),
        draw=put([len(state.drawn) for state in states], torch.int64),
        repetition=put([p.repetition_penalty for p in asked]),
        presence=put([p.presence_penalty for p in asked]),
        frequency=put([p.frequency_penalty for p in asked]),
        bias=rows([state.bias for state in states], torch.float32),
        generated=rows([state.generated for state in states], torch.int32),
        prompted=rows([state.prompted for state in states], torch.bool),
        greedy=all(p.temperature == 0 for p in asked),
        truncated=any(p.top_k or p.top_p < 1 or p.min_p for p in asked),
    )


class Llama2CSampler:
    """llama2.c's sampler, number for number: xorshift64*, float32 sums in order.

    Its random state is a 64-bit seed that must not be 0.
    """

    def __init__(self, temperature: float, top_p: float, seed: int) -> None:
        self.temperature, self.top_p = np.float32(temperature), np.float32(top_p)
        self.state = self._next = seed

    def coin(self) -> np.float32:
        """A number in [0, 1), the same until `accept`."""
        s = self.state
        s ^= s >> 12
        s ^= (s << 25) & 0xFFFFFFFFFFFFFFFF
        s ^= s >> 27
        self._next = s
        word = (s * 0x2545F4914F6CDD1D & 0xFFFFFFFFFFFFFFFF) >> 32
        return np.float32((word >> 8) / 16777216.0)

    def accept(self) -> None:
        """Goes on to the next number, if one was taken."""
        self.state = self._next

    def draw(self, logits: torch.Tensor) -> int:
        """The next token from logits [vocab]."""
        scores = logits.float().cpu().numpy()
        if self.temperature == 0:
            return int(scores.argmax())
        scores = scores / self.temperature
        p = np.exp(scores - scores.max())
        p /= np.cumsum(p)[-1]
        coin = self.coin()
        if 0 < self.top_p < 1:
            return self._nucleus(p, coin)
        return _first_above(np.cumsum(p), coin)

    def _nucleus(self, p: np.ndarray[tuple[int], np.dtype[np.float32]], coin: np.float32) -> int:
        cutoff = (np.float32(1) - self.top_p) / np.float32(max(p.size - 1, 1))
        kept = np.flatnonzero(p >= cutoff)
        if kept.size == 0:
            return int(p.argmax())
        kept = kept[np.argsort(-p[kept], kind="stable")]
        mass = np.cumsum(p[kept])
        last = _first_above(mass, self.top_p)
        return int(kept[_first_above(mass[: last + 1], coin * mass[last])])


def _first_above(
    rising: np.ndarray[tuple[int], np.dtype[np.float32]], level: np.floating[Any]
) -> int:
    """The first place whose value exceeds the level, or the last place."""
    return int(min(np.searchsorted(rising, level, side="right"), rising.size - 1))


def _bias(bias: Mapping[int, float], vocab: int) -> torch.Tensor:
    for token in bias:
        if not 0 <= token < vocab:
            raise RequestError(f"logit_bias names token {token}, outside 0 to {vocab - 1}")
    row = torch.zeros(vocab, dtype=torch.float32)
    row[torch.tensor(list(bias))] = torch.tensor(list(bias.values()), dtype=torch.float32)
    return row

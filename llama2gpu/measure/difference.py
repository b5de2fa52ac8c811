"""Where two backends part: op by op on the same inputs, then in the logits on their own.

Each op of each layer gets the same inputs on both (`op_walk`): a prompt, then token by token, then
the same tokens in other chunks. It differs where its error is beyond what `ops.tolerance` allows in
the coarser type of the two, and beyond four times the noise. That is measured: how far a backend
is from itself when it does the same again, and in the other chunks. Sampling is not compared.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llama2gpu.backends.base import Backend
from llama2gpu.batch import Span, build_batch
from llama2gpu.cache import KVCache
from llama2gpu.documents import read_documents
from llama2gpu.errors import RequestError
from llama2gpu.measure.model_pair import ModelPair
from llama2gpu.measure.op_errors import Spot, Tracks, spots
from llama2gpu.measure.op_walk import Chunks, Track, Walk
from llama2gpu.measure.score import compare_states
from llama2gpu.model import Model

#: Tokens where no number is asked for, at most where one is, and the last that come one by one.
TOKENS, MOST, DECODED = 160, 2048, 8
TEXT = """\
Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One \
day, she saw a big, red ball under a tree. She wanted to play with it, but it was too high for \
her. "Can you help me, Tom?" she asked. Tom was a tall boy with a blue hat and 3 cats. He smiled, \
climbed up and shook the branch until the ball came down with a bump. They laughed and threw it \
back and forth until the sun went away. Then it began to rain, and the two friends ran to Lily's \
house, where her mom gave them warm milk and bread with honey.
The next morning Tom could not find his hat. He looked in the kitchen, in the garden and behind \
the door, and he felt very sad. "Don't worry," said Lily, "we will look for it together." So they \
walked down the road, past the pond with its 12 ducks, and there it was: the oldest cat lay asleep \
in it, high up on the branch where the ball had been. They did not wake her. "She may keep it for \
today," said Tom, and they sat down in the grass and waited, because good friends can wait.
"""

#: Called with the walks done, how many there are, and what the next one is.
Told = Callable[[int, int, str], None]


@dataclass(frozen=True)
class LogitDistance:
    """Of the next token's distribution, over all tokens.

    divergence, divergence_99: mean and 99th percentile of KL(b ‖ model), nats. agreement: share
    of the tokens after which both find the same token likeliest.
    """

    divergence: float
    divergence_99: float
    agreement: float

    def fields(self) -> dict[str, float | None]:
        """As JSON has it, with null for what is no number."""
        return {name: x if math.isfinite(x) else None for name, x in vars(self).items()}


@dataclass(frozen=True)
class Difference:
    """What two models are to each other.

    chunks: tokens of each step: first the prompt's, then one at a time. other_chunks: of the same
    tokens, cut elsewhere. tolerance: the type whose counts. quantized_cache: both caches are int8.
    spots: in the order of computing. logits: of a on its own from b on its own. noise: of b in the
    other chunks from b.
    """

    chunks: list[int]
    other_chunks: list[int]
    tolerance: torch.dtype
    quantized_cache: bool
    spots: list[Spot]
    logits: LogitDistance
    noise: LogitDistance

    @property
    def first(self) -> Spot | None:
        """Where they part first; None where no op differs."""
        return next((spot for spot in self.spots if spot.verdict != "agrees"), None)

    def fields(self) -> dict[str, Any]:
        """As JSON has it."""
        first = self.first
        return {
            "differs": first is not None,
            "first": None if first is None else first.fields(),
            "chunks": self.chunks,
            "other_chunks": self.other_chunks,
            "logits": self.logits.fields(),
            "logits_noise": self.noise.fields(),
            "spots": [spot.fields() for spot in self.spots],
        }

    @property
    def worst(self) -> list[Spot]:
        """Of each output of an op, the spot that is nearest to its limit or farthest beyond."""
        found: dict[tuple[str, str], Spot] = {}
        for spot in sorted(self.spots, key=lambda s: (s.verdict == "agrees", -s.share)):
            found.setdefault((spot.place.op, spot.place.part), spot)
        return sorted(found.values(), key=lambda spot: spot.order[1:][::-1])


@torch.inference_mode()
def find_difference(
    a: Model,
    b: Model,
    ids: Sequence[int],
    *,
    kv_dtype: torch.dtype | None = None,
    quantized: bool = False,
    told: Told = lambda done, total, what: None,
) -> Difference:
    """Compares two models of one checkpoint on token ids, at least two; b is the trusted one.

    kv_dtype: int8 for quantized caches. quantized: the weights are (see `tolerance.bound`).
    Raises `RequestError` where b gives what is no number.
    """
    return _Comparison(a, b, ids, kv_dtype, told).difference(quantized)


class _Comparison:
    def __init__(
        self, a: Model, b: Model, ids: Sequence[int], kv_dtype: torch.dtype | None, told: Told
    ) -> None:
        self.a, self.b, self.kv_dtype = a, b, kv_dtype
        self.tokens = torch.tensor(ids, dtype=torch.int64)
        self.narrow = max((a.activations, b.activations), key=lambda kind: torch.finfo(kind).eps)
        #: whether layers in one call are compared: not where codes may fall to either side
        self.in_one = kv_dtype is None and any(
            type(model.backend).layer is not Backend.layer for model in (a, b)
        )
        self.whole, self.other = cut(len(ids))
        self.told, self.done = told, 0

    def difference(self, quantized: bool) -> Difference:
        a, b, whole, other = self.a, self.b, self.whole, self.other
        self._tell(f"{b.backend.label}, recorded")
        source = Walk(b, self.tokens, self.narrow, self.kv_dtype)
        _check_finite(source.ops(whole), b)
        again = self._tracks(b, source, [whole, other])
        if self.in_one:
            mine = Walk(b, self.tokens, self.narrow, self.kv_dtype, source)
            source.track |= mine.layers(whole)
        found = self._tracks(a, source, [whole, whole, other])
        tracks = Tracks(found, [source.track, *again], source.rounded, whole[0][1])
        self._tell("logits")
        states = [self._states(model, how) for model, how in ((a, whole), (b, whole), (b, other))]
        return Difference(
            [count for _, count in whole],
            [count for _, count in other],
            self.narrow,
            self.kv_dtype == torch.int8,
            spots(tracks, self.narrow, quantized),
            _distance(a, states[0], b, states[1]),
            _distance(b, states[2], b, states[1]),
        )

    def _tracks(self, model: Model, source: Walk, ways: Sequence[Chunks]) -> list[Track]:
        """What a model gives in several ways on the source's inputs."""
        found = []
        for chunks in ways:
            self._tell(f"{model.backend.label} in {len(chunks)} steps")
            walk = Walk(model, self.tokens, self.narrow, self.kv_dtype, source)
            walk.ops(chunks)
            found.append(walk.layers(chunks) if self.in_one else walk.track)
        return found

    def _states(self, model: Model, chunks: Chunks) -> Tensor:
        """Hidden states [T, dim] on the model's own way through the tokens."""
        device, found = model.backend.device, []
        cache = KVCache(model.config, 0, self.kv_dtype or model.activations, device)
        cache.grow(cache.pages_for(len(self.tokens)))
        for start, count in chunks:
            batch = build_batch([Span(range(cache.pages), start, count)], cache.page, device)
            tokens = self.tokens[start : start + count].to(device)
            found.append(model.forward(tokens, batch, cache.layers))
        return torch.cat(found)

    def _tell(self, what: str) -> None:
        self.told(self.done, 7, what)
        self.done += 1


def read_ids(pair: ModelPair, text: Path | None = None, tokens: int | None = None) -> list[int]:
    """The first ids of a text file, or of `TEXT`; as many as asked, 160 or what there is if None.

    Raises `RequestError` where the text or the model's context has fewer, or the file is no text.
    """
    words = TEXT if text is None else "\n".join(read_documents([text]))
    ids = pair.tokenizer.encode(words)
    most = min(pair.checkpoint.config.context, MOST)
    count = tokens or max(min(TOKENS, most, len(ids)), 2)
    if count > most:
        raise RequestError(f"{count} tokens are more than the {most} that can be compared at once")
    if count > len(ids):
        raise RequestError(
            f"the text has {len(ids)} tokens, fewer than {count}: give a longer one (--text FILE)"
        )
    return ids[:count]


def cut(tokens: int) -> tuple[Chunks, Chunks]:
    """How tokens, at least two, are taken: a prompt and single ones, and in other chunks.

    The other chunks are thirds of the prompt, then all that were single together.
    """
    single = min(DECODED, tokens // 2)
    prompt = tokens - single
    part = -(-prompt // 3)
    whole = [(0, prompt), *((start, 1) for start in range(prompt, tokens))]
    thirds = [(start, min(part, prompt - start)) for start in range(0, prompt, part)]
    return whole, [*thirds, (prompt, single)]


def _check_finite(track: Track, model: Model) -> None:
    for place, rows in track.items():
        if not rows.isfinite().all():
            where = "" if place.layer is None else f" in layer {place.layer}"
            raise RequestError(
                f"{place.op}{where} gives what is no number on {model.backend.label}: its weights "
                "are damaged, or too large for --dtype fp16: try fp32 or bf16"
            )


def _distance(model: Model, x: Tensor, full: Model, base: Tensor) -> LogitDistance:
    found, same = compare_states(model, x, full, base)
    return LogitDistance(
        divergence=found.mean().item(),
        divergence_99=found.quantile(0.99).item(),
        agreement=same.double().mean().item(),
    )

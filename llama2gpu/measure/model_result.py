"""Cases in which a model is measured, and what was measured in them."""

import statistics
from dataclasses import dataclass

from llama2gpu.measure.results import Named, Row, spread

#: Tokens that are cached by prefilling them, in all; more are random keys and values. One step of
#: the engine takes as many, so that no sequence decodes while another is prefilled.
PREFILLED = 512


@dataclass(frozen=True)
class Case:
    """`batch` sequences with `depth` tokens cached each, and `tokens` new ones of each.

    bench: "decode" generates them, "prefill" takes them as a prompt.
    """

    bench: str
    depth: int
    batch: int
    tokens: int

    @property
    def decodes(self) -> bool:
        """Whether tokens are generated."""
        return self.bench == "decode"

    @property
    def prompt(self) -> int:
        """Tokens of a sequence before the first one is drawn."""
        return max(self.depth, 1) if self.decodes else self.depth + self.tokens

    @property
    def cached(self) -> int:
        """Tokens of a prompt that are not computed: their keys and values are random."""
        if not self.decodes:
            return self.depth
        return self.prompt - 1 if self.depth * self.batch > PREFILLED else 0

    @property
    def prefilled(self) -> int:
        """Tokens that are prefilled, in all; 0 where there are none worth timing."""
        count = (self.prompt - self.cached) * self.batch
        return count if not self.decodes or (self.depth and not self.cached) else 0

    @property
    def drawn(self) -> int:
        """Tokens of a sequence that are decoded."""
        return self.tokens if self.decodes else 0


@dataclass(frozen=True)
class Round:
    """One measurement: rates in tokens/s over all sequences, peaks in bytes/s and flop/s.

    A rate that was not taken is None; so are those of a peer where there is none.
    """

    prefill_rate: float | None
    decode_rate: float | None
    read_peak: float
    matmul_peak: float
    peer_prefill_rate: float | None = None
    peer_decode_rate: float | None = None


@dataclass(frozen=True)
class ModelResult(Named):
    """What was measured, on what.

    weight_bytes: read by each step of decoding. cache_bytes: keys and values that it reads as well.
    prompt_flops: of the matrices, a prompt token.
    load_seconds: until the weights are ready. first_seconds: of the first prefill, in which kernels
        are compiled; None where there is none.
    memory_bytes: peak from load to the end of this case's first answer, with those of the cases
        before it: anonymous memory, or the allocator's on a CUDA device; None where nothing tells.
    memory_ratio: that divided by the bytes of all matrices.
    peer: what the peer's rates are of, "" for none.
    """

    rounds: list[Round]
    weight_bytes: int
    cache_bytes: int
    prompt_flops: int
    load_seconds: float | None
    first_seconds: float | None
    memory_bytes: int | None
    memory_ratio: float | None
    machine: dict[str, str]
    peer: str = ""

    @classmethod
    def read(cls, row: Row) -> "ModelResult":
        """From a row of a file of results."""
        return cls(**{**row, "rounds": [Round(**found) for found in row["rounds"]]})

    def values(self, field: str) -> list[float]:
        """One field of all rounds; none where it was not taken."""
        found = [getattr(r, field) for r in self.rounds]
        return [] if None in found else found

    def median(self, field: str) -> float:
        """Median over the rounds of one of their fields."""
        return statistics.median(self.values(field))

    def mean(self, field: str) -> tuple[float, float]:
        """Mean over the rounds of one of their fields, and the standard deviation."""
        values = self.values(field)
        return statistics.mean(values), spread(values)

    def peer_share(self, field: str) -> float:
        """Median over the rounds of a rate divided by the peer's."""
        pairs = zip(self.values(field), self.values("peer_" + field), strict=True)
        return statistics.median(own / other for own, other in pairs)

    @property
    def step_bytes(self) -> float:
        """Bytes that a step of decoding reads."""
        return self.weight_bytes + self.cache_bytes

    @property
    def read_share(self) -> float:
        """Bandwidth of decoding against the read peak of the same round."""
        pairs = zip(self.values("decode_rate"), self.values("read_peak"), strict=True)
        return statistics.median(rate / self.batch * self.step_bytes / peak for rate, peak in pairs)

    @property
    def matmul_share(self) -> float:
        """Flop/s of the matrices in prefill against the matmul peak of the same round."""
        pairs = zip(self.values("prefill_rate"), self.values("matmul_peak"), strict=True)
        return statistics.median(rate * self.prompt_flops / peak for rate, peak in pairs)

    @property
    def prefill_seconds(self) -> float:
        """Of the median round, all sequences together."""
        return self.batch * self.tokens / self.median("prefill_rate")

    @property
    def compile_seconds(self) -> float | None:
        """What the first prefill took longer than the median round."""
        if self.first_seconds is None or self.bench != "prefill":
            return None
        return max(self.first_seconds - self.prefill_seconds, 0.0)

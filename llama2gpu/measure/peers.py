"""Other software that does the same: what it is, why it is missing here, and rows of what was.

Each is optional. What is measured of them, in turns with ours, are `PeerRow`s.
"""

import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import import_module, metadata
from pathlib import Path
from shutil import which
from typing import Literal, TypeVar

import torch

from llama2gpu.measure.kernel_timer import quartiles
from llama2gpu.measure.llama_cpp import program_version
from llama2gpu.measure.results import Named

T = TypeVar("T")
INSTALL = "pip install 'llama2gpu[peers]'"
LIGER = "liger_kernel.transformers.functional"


@dataclass(frozen=True)
class Peer:
    """One of them.

    measures: whole models, or single kernels. package: what it is installed as, "" for PyTorch's
    own; least: its oldest version that serves. module: what is imported of it. program: what has to
    be on PATH. gpu: it needs one.
    """

    name: str
    measures: Literal["models", "kernels"]
    package: str = ""
    least: tuple[int, ...] = ()
    module: str = ""
    program: str = ""
    gpu: bool = False

    def absent(self, device: torch.device) -> str:
        """Why it can't be measured on a device, and what mends that; "" where it can be."""
        if self.gpu and device.type != "cuda":
            return "needs a CUDA GPU"
        if self.program and which(self.program) is None:
            return f"there is no {self.program} on PATH: build llama.cpp and add its folder"
        return self._missing() if self.package else ""

    def _missing(self) -> str:
        try:
            version = metadata.version(self.package)
        except metadata.PackageNotFoundError:
            return f"{self.package} is not installed: {INSTALL}"
        if numbers(version) < self.least:
            return f"{self.package} {version} is too old: {INSTALL}"
        try:
            import_module(self.module)
        except Exception as error:  # of any kind: some ask the device for its name
            return f"{self.package} {version} can't be imported: {reason(error)}"
        return ""

    @property
    def version(self) -> str:
        """Of what is installed."""
        if self.program:
            return program_version(self.path) or "unknown"
        return metadata.version(self.package or "torch")

    @property
    def path(self) -> Path:
        """The program's."""
        return Path(which(self.program) or self.program)


PEERS = {
    peer.name: peer
    for peer in (
        Peer("transformers", "models", "transformers", (5, 8), "transformers"),
        Peer("llama.cpp", "models", "gguf", (0, 10), "gguf", program="llama-bench"),
        Peer("tinygemm", "kernels"),
        Peer("gemlite", "kernels", "gemlite", (0, 6), "gemlite.helper", gpu=True),
        Peer("liger-kernel", "kernels", "liger-kernel", (0, 8), LIGER, gpu=True),
    )
}


@dataclass(frozen=True)
class Ratio:
    """Median over the rounds, and the quartiles around it, of ours divided by theirs."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class PeerRow(Named):
    """What was measured of ours or of a peer.

    bench: "peers" for a whole model, else the op. backend: whose it is. depth, tokens: cached
    before, and generated; of an op the context and its tokens at once. n, k: of its matrix.
    rounds: rates in tokens/s, or microseconds `us`. ratios: of ours to it by figure, where more
    than 1 is faster; none of ours itself.
    """

    n: int | None
    k: int | None
    rounds: list[dict[str, float]]
    ratios: dict[str, Ratio]
    machine: dict[str, str]

    def median(self, figure: str) -> float:
        """Of the rounds."""
        return statistics.median(one[figure] for one in self.rounds)


@dataclass
class Compared:
    """Rows; why some peers are missing, and whose results are wrong and so not timed, by name."""

    rows: list[PeerRow] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)

    def add(self, other: "Compared") -> None:
        """Takes what another has."""
        self.rows += other.rows
        self.absent |= other.absent
        self.wrong |= other.wrong


def numbers(version: str) -> tuple[int, ...]:
    """What a version begins with: (5, 8, 0) of "5.8.0rc1"."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def reason(error: Exception) -> str:
    """What another's code raised, in a line; raises `MemoryError` again."""
    if isinstance(error, MemoryError):
        raise error
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def present(
    names: Iterable[str], measures: str, device: torch.device
) -> tuple[list[Peer], Compared]:
    """The named peers of that kind that can be measured, and those that can't."""
    found, told = [], Compared()
    for peer in (PEERS[name] for name in names):
        if peer.measures != measures:
            continue
        if why := peer.absent(device):
            told.absent[peer.name] = why
        else:
            found.append(peer)
    return found, told


def turns(many: Sequence[T], number: int) -> Sequence[T]:
    """The order of a round: each other one is backwards, and each begins with another."""
    start = number // 2 % max(len(many), 1)
    order = [*many[start:], *many[:start]]
    return order[::-1] if number % 2 else order


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Of each round's rates."""
    parts = [own / other for own, other in zip(ours, theirs, strict=True)]
    if len(parts) < 2:
        return Ratio(*parts * 3)
    times = quartiles(parts)
    return Ratio(times.median, times.low, times.high)

"""Finding the fastest tile of each matrix kernel on a device, and keeping what was found."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from llama2gpu.backends import backend_class
from llama2gpu.config import Config
from llama2gpu.errors import BackendError
from llama2gpu.kernels.arch import Arch
from llama2gpu.kernels.launch import Launch, recording
from llama2gpu.kernels.tiling import FEW, Tile, Use, shipped_tile, use_of
from llama2gpu.kernels.tuned import DamagedError, Entry, Tuned, read_entries, write_entries
from llama2gpu.measure.candidates import candidates
from llama2gpu.measure.kernel_work import Work, meta_arguments, works
from llama2gpu.measure.real_work import real_arguments
from llama2gpu.ops.sample import SampleParams
from llama2gpu.ops.tolerance import bound, error

#: The ops of a model that read a matrix.
OPS = ("qkv", "project_add", "gate_up", "logits")
#: The share of its time by which a tile must beat the shipped one.
GAIN = 0.02
#: Tokens in the cache, which do not matter to a matrix.
CONTEXT = 512


class Bench(Protocol):
    """A device to run and time launches on."""

    device: torch.device

    def sets(self, nbytes: int) -> int:
        """How many sets of weights of so many bytes to go through, so that no cache holds them."""

    def compile(self, launches: Sequence[Launch]) -> None:
        """Compiles ahead what it can; what fails will fail again in `run`."""

    def run(self, launches: Sequence[Launch]) -> None:
        """Runs launches to their end. Raises what the compiler or the driver raises."""

    def microseconds(self, rounds: Sequence[Sequence[Launch]]) -> float:
        """Median time of a round, of many that were run one after another."""


class Problem(NamedTuple):
    """A use to find a tile for, and the op that it is timed in."""

    work: Work
    use: Use


@dataclass(frozen=True)
class Found:
    """What came of a problem. tile: None where the shipped one stays.

    shipped_us, best_us: microseconds of the op. tried: candidates; failed of them did not compile
    or launch, wrong gave other results than the shipped tile.
    """

    work: Work
    use: Use
    kernel: str
    tile: Tile | None
    shipped_us: float
    best_us: float
    tried: int
    failed: int
    wrong: int

    @property
    def gain(self) -> float:
        """The share of the shipped tile's time that is saved."""
        return 1 - self.best_us / self.shipped_us

    def fields(self) -> dict[str, Any]:
        """What is told in JSON."""
        w = self.work
        tile = None if self.tile is None else self.tile._asdict()
        return {
            "op": w.op, "kernel": self.kernel, "weight": w.weight, "m": w.m, "n": w.n, "k": w.k,
            "shipped_us": self.shipped_us, "best_us": self.best_us, "gain": self.gain,
            "tile": tile, "tried": self.tried, "failed": self.failed, "wrong": self.wrong,
        }  # fmt: skip


def problems(
    config: Config, weights: Sequence[str], tokens: Sequence[int], arch: Arch
) -> list[Problem]:
    """The uses of a model's matrices with so many tokens, each once. Raises `BackendError`."""
    if wrong := [m for m in tokens if m > FEW]:
        raise BackendError(f"no kernel takes {wrong[0]} tokens: choose from 1 to {FEW}")
    found: dict[Use, Problem] = {}
    for work in works(config, OPS, weights, tokens, min(CONTEXT, config.context)):
        use = use_of(arch, _matrix(work, arch).packed, work.m)
        found.setdefault(use, Problem(work, use))
    return list(found.values())


def tune(
    todo: Sequence[Problem],
    arch: Arch,
    bench: Bench,
    quick: bool = False,
    told: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Iterator[Found]:
    """What comes of each problem, in order. told: hears how many are done, and which is begun."""
    for i, problem in enumerate(todo):
        work = problem.work
        told(i, len(todo), f"{work.op} {work.weight} {work.n}×{work.k}, {work.m} tokens")
        yield _Trial(problem, arch, bench).result(list(candidates(problem.use, quick)))


def keep(found: Iterable[Found], path: Path, device: str, arch: Arch) -> Iterator[Found]:
    """Hands on what is found, each written to the file of a device of that name first.

    The file is whole at any time, and what it says of other uses stays.
    """
    try:
        entries = read_entries(path, arch.name)
    except (DamagedError, FileNotFoundError):
        entries = []
    for one in found:
        before, entries = entries, merged(entries, one)
        if entries != before:
            write_entries(path, device, arch.name, entries)
        yield one


def merged(entries: Sequence[Entry], found: Found) -> list[Entry]:
    """The entries with what was found in the place of what they say of the same use."""
    kept = [entry for entry in entries if entry.use != found.use]
    if found.tile is None:
        return kept
    times = (round(found.shipped_us, 2), round(found.best_us, 2))
    return [*kept, Entry(found.use, found.tile, *times, date.today().isoformat())]


class _Trial:
    """Tiles of one use, each run on the same arguments."""

    def __init__(self, problem: Problem, arch: Arch, bench: Bench) -> None:
        self.work, self.use = problem
        self.arch, self.bench = arch, bench
        count = bench.sets(_matrix(self.work, arch).nbytes)
        self.sets = list(real_arguments(self.work, _on_meta(arch), bench.device, count))
        self.failed = self.wrong = 0
        try:
            self.reference, self.kernel = self._first(None)
        except Exception as problem:  # of many kinds: the compiler's and the driver's
            raise BackendError(
                f"{self._name} does not run with its own tile: {problem}"
            ) from problem

    @property
    def _name(self) -> str:
        return f"{self.work.op} ({self.work.weight}, {self.work.m} tokens)"

    def result(self, tiles: Sequence[Tile]) -> Found:
        """The fastest of the tiles that are right, where it beats the shipped one."""
        tiles = [tile for tile in tiles if tile != shipped_tile(self.use)]
        made = ((*self._recorded(tile, 1)[0][0], *self._also(tile)) for tile in tiles)
        self.bench.compile([launch for launches in made for launch in launches])
        times = {tile: time for tile in tiles if (time := self._time_checked(tile)) is not None}
        shipped = self._time(None)
        best, tile = shipped, None
        fastest = min(times, key=lambda tile: times[tile], default=None)
        if fastest is not None and times[fastest] < shipped:
            # again, in turn: the fastest of many is also the luckiest of them
            again = self._time(fastest), self._time(None)
            if again[0] < (1 - GAIN) * again[1]:
                (best, shipped), tile = again, fastest
            else:
                best = shipped
        return Found(
            self.work, self.use, self.kernel, tile, shipped, best, len(tiles), self.failed,
            self.wrong,
        )  # fmt: skip

    def _time_checked(self, tile: Tile) -> float | None:
        """Microseconds; None where it does not run, or its results are others."""
        try:
            found, _ = self._first(tile)
            if self._agree(found):
                return self._time(tile)
            self.wrong += 1
        except Exception as problem:  # of many kinds: the compiler's and the driver's
            self.failed += 1
            self._require_device(problem)
        return None

    def _time(self, tile: Tile | None) -> float:
        rounds, _ = self._recorded(tile, len(self.sets))
        return self.bench.microseconds(rounds)

    def _first(self, tile: Tile | None) -> tuple[list[torch.Tensor], str]:
        """What it leaves behind on the first set; and the name of its kernel."""
        (launches,), (made,) = self._recorded(tile, 1)
        places = [made, *_written(self.work, self.sets[0])]
        for place in places:
            place.fill_(torch.nan if place is made else 0.0)  # of a cache it writes a part
        self.bench.run([*launches, *self._also(tile)])
        return [place.clone() for place in places], launches[-1].name

    def _also(self, tile: Tile | None) -> list[Launch]:
        """What else has the tile in a model: the head draws a token in the same kernel."""
        if self.work.op != "logits":
            return []
        with recording() as launches:
            _backend(self.bench.device, self.arch, self._tiles(tile)).draw(
                **self.sets[0], params=_greedy(self.work.m, self.bench.device)
            )
        return launches[:1]

    def _recorded(
        self, tile: Tile | None, sets: int
    ) -> tuple[list[list[Launch]], list[torch.Tensor]]:
        """The launches of so many sets with a tile, and what each returns."""
        backend = _backend(self.bench.device, self.arch, self._tiles(tile))
        rounds, made = [], []
        for arguments in self.sets[:sets]:
            with recording() as launches:
                made.append(getattr(backend, self.work.op)(**arguments))
            rounds.append(launches)
        return rounds, made

    def _tiles(self, tile: Tile | None) -> Tuned:
        return Tuned() if tile is None else Tuned({self.use: tile})

    def _agree(self, found: Sequence[torch.Tensor]) -> bool:
        limit = bound(self.work.op, torch.bfloat16, quantized=self.work.weight != "dense")
        for out, reference in zip(found, self.reference, strict=True):
            largest, rms = error(out, reference)
            if largest > limit.largest or rms > limit.rms:
                return False
        return True

    def _require_device(self, problem: Exception) -> None:
        """A launch that failed may have cost the process its device."""
        try:
            self._first(None)
        except Exception as error:
            raise BackendError(
                f"a tile of {self._name} stopped the device ({problem}): run it again with"
                " --quick, or with other --weight and --tokens"
            ) from error


def _matrix(work: Work, arch: Arch) -> Any:
    """Its matrix as the backend has it, without memory."""
    return meta_arguments(work, _on_meta(arch))["weight"]


def _on_meta(arch: Arch) -> Any:
    return _backend(torch.device("meta"), arch)


def _backend(device: torch.device, arch: Arch, tuned: Tuned | None = None) -> Any:
    make: Any = backend_class("triton")
    return make(device, arch=arch, tuned=tuned)


def _written(work: Work, arguments: dict[str, Any]) -> list[torch.Tensor]:
    """The arguments that an op writes to."""
    return [arguments["cache"].k, arguments["cache"].v] if work.op == "qkv" else []


def _greedy(count: int, device: torch.device) -> SampleParams:
    reals = ("temperature", "top_p", "min_p", "repetition", "presence", "frequency")
    vectors: dict[str, Any] = {name: torch.zeros(count, device=device) for name in reals}
    for name in ("top_k", "seed", "draw"):
        vectors[name] = torch.zeros(count, dtype=torch.int64, device=device)
    return SampleParams(**vectors, greedy=True, truncated=False)

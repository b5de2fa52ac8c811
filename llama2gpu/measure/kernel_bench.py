"""Each op of each backend, checked and then timed, beside PyTorch's own and the device's roofs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import Any

import torch

from llama2gpu.backends.base import Backend
from llama2gpu.measure.baselines import INPUT, Product, baselines, products
from llama2gpu.measure.kernel_check import problem
from llama2gpu.measure.kernel_inputs import KernelInputs, least, random_matrices
from llama2gpu.measure.kernel_timer import FEWEST, Call, Timer, Times, is_cold, sets_of
from llama2gpu.measure.kernel_work import Work
from llama2gpu.measure.roofs import Roofs, higher, middle
from llama2gpu.ops.cost import Cost
from llama2gpu.quant import Dense, Weight

#: The ops that have a cost and a reference.
OPS = (
    "qkv", "attention", "project_add", "gate_up", "logits", "linear", "rms_norm", "rope",
    "silu_mul", "write_kv", "embed", "sample",
)  # fmt: skip
#: Sets whose results are checked.
CHECKED = 4
#: How often roofs that an op was above are taken again.
RETAKEN = 3
#: Bytes of matrices in memory at once, where two sets are not more.
ROOM = 8 << 30

Arguments = dict[str, Any]
Told = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Figures:
    """What was measured of an op whose result is right.

    us: median microseconds, between the quartiles us_low and us_high. graph: timed in one. sets:
    of arguments that take turns; cold: together they are too large for the cache. bytes, flops: the
    least that it must move and compute. share: the least time under the roofs, taken beside it,
    divided by the median; None where memory is the roof and the cache may hold the arguments.
    baseline: PyTorch's fastest, "" for none. ratio: its time divided by the op's.
    """

    us: float
    us_low: float
    us_high: float
    graph: bool
    sets: int
    cold: bool
    bytes: int
    flops: int
    gbps: float
    tflops: float
    bound: str
    share: float | None
    memory_roof: float
    compute_roof: float
    baseline: str = ""
    baseline_us: float | None = None
    ratio: float | None = None


@dataclass(frozen=True)
class Row:
    """One op of one backend in one use (`Work`); without figures where its result is wrong."""

    backend: str
    op: str
    case: str
    weight: str
    dtype: str
    m: int
    n: int
    k: int | None
    context: int
    problem: str
    figures: Figures | None

    @property
    def use(self) -> str:
        """Which of an op's uses in a model, where it has several."""
        return self.case.partition(", ")[2]

    @property
    def checked(self) -> bool:
        """Whether its result is right."""
        return self.figures is not None

    def fields(self) -> dict[str, Any]:
        """What is told in JSON and CSV: all figures are None where it is wrong."""
        found = asdict(self)
        figures = found.pop("figures") or dict.fromkeys(Figures.__dataclass_fields__)
        return {**found, "checked": self.checked, **figures}


@dataclass
class KernelBench:
    """Measures works on backends of one device.

    backends: with the types of their activations, by name. roofs: measures them; each work is held
    against the higher of those taken right before and after it. `taken` has all.
    """

    backends: Sequence[tuple[Backend, str, torch.dtype]]
    timer: Timer
    roofs: Callable[[], Roofs]
    seed: int = 0
    taken: list[Roofs] = field(default_factory=list)

    def rows(self, works: Sequence[Work], told: Told = lambda done, total, what: None) -> list[Row]:
        """A row for each work on each backend, in that order; told: before each."""
        found: list[tuple[int, int, Row]] = []
        for backend, _, dtype in self.backends:
            settle(backend, dtype)
        total = len(works) * len(self.backends)
        numbered = groupby(enumerate(works), key=lambda one: same_matrix(one[1]))
        for _, group in numbered:
            these = list(group)
            for place, (backend, name, dtype) in enumerate(self.backends):
                bench = _Rows(self.take, backend, dtype, these[0][1], self.timer, self.seed)
                for i, work in these:
                    told(len(found), total, f"{backend.name} {work.op} {work.weight} {work.m}")
                    found.append((i, place, bench.row(work, name)))
        return [row for _, _, row in sorted(found, key=lambda one: one[:2])]

    def take(self) -> Roofs:
        """The roofs as they are now."""
        self.taken.append(self.roofs())
        return self.taken[-1]

    @property
    def roof(self) -> Roofs:
        """The median of the roofs taken; one is where every result was wrong."""
        return middle(self.taken or [self.take()])


def settle(backend: Backend, dtype: torch.dtype) -> None:
    """Prepares a matrix, as a model does before all else: a backend may choose its ways by it."""
    backend.prepare(Dense(torch.ones(1024, 1024, dtype=dtype, device=backend.device)), "linear")


def same_matrix(work: Work) -> tuple[Any, ...]:
    """What two works have in common that can be in one group."""
    return work.op, work.weight, work.n, work.k


class Group:
    """Works of one backend that read one matrix, which the first of them has too.

    matrices: in sets that the timer's cache can't hold; none where the works read none.
    """

    def __init__(
        self, backend: Backend, dtype: torch.dtype, first: Work, timer: Timer, seed: int = 0
    ) -> None:
        self.backend, self.dtype, self.timer, self.seed = backend, dtype, timer, seed
        self.matrices: list[Weight] = []
        if first.has_matrix or first.op == "embed":
            nbytes = least(first, dtype).bytes
            count = sets_of(nbytes, timer.cache) if first.has_matrix else FEWEST
            count = max(min(count, ROOM // nbytes), FEWEST)
            self.matrices += random_matrices(first, dtype, backend.device, count, seed)
        self.prepared = [backend.prepare(matrix, first.op) for matrix in self.matrices]

    def sets(self, work: Work) -> list[Arguments]:
        """Arguments in sets, whose matrices are the group's in turn."""
        inputs = KernelInputs(work, self.dtype, self.backend.device, self.seed + 1)
        count = len(self.matrices)
        if not work.has_matrix:
            count = sets_of(least(work, self.dtype).bytes, self.timer.cache)
        sets = [inputs.arguments() for _ in range(count)]
        if self.matrices:
            for i, arguments in enumerate(sets):
                arguments["weight"] = self.prepared[i % len(self.prepared)]
        return sets

    def matrix(self, i: int) -> Weight | None:
        """The matrix of set i as it was before the backend prepared it."""
        return self.matrices[i % len(self.matrices)] if self.matrices else None

    def wrong(self, work: Work, sets: list[Arguments]) -> str:
        """What is wrong with the results of some of the sets; "" where they are right."""
        for i in checked(len(sets)):
            if found := problem(work, self.backend, sets[i], self.matrix(i), seed=self.seed + i):
                return found
        return ""


def checked(count: int) -> list[int]:
    """Which of so many sets are checked, the first and the last among them."""
    return sorted({j * (count - 1) // (CHECKED - 1) for j in range(CHECKED)})


class _Rows(Group):
    """The same with what is told of each work."""

    def __init__(self, take: Callable[[], Roofs], *of: Any) -> None:
        super().__init__(*of)
        self.take = take
        self._products: dict[str, list[Product]] = {}

    def row(self, work: Work, name: str) -> Row:
        """The work's row, with the name of its type; what the op raises is its problem."""
        wrong, found = "", None
        try:
            sets = self.sets(work)
            wrong = self.wrong(work, sets)
            if not wrong:
                found = self._figures(work, name, sets)
        except MemoryError:
            raise
        except Exception as error:  # of many kinds: the backend's
            wrong = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return Row(
            self.backend.name, work.op, work.case, work.weight, name, work.m, work.n, work.k,
            work.context, wrong, found,
        )  # fmt: skip

    def _figures(self, work: Work, name: str, sets: list[Arguments]) -> Figures:
        op, cost = getattr(self.backend, work.op), least(work, self.dtype)
        before = self.take()
        times = self.timer.microseconds([partial(op, **arguments) for arguments in sets])
        roofs = higher(before, self.take())
        cold = is_cold(cost.bytes * len(sets), self.timer.cache)
        found = figures(cost, times, roofs, name, len(sets), cold)
        for _ in range(RETAKEN):
            if found.share is None or found.share <= 1:
                break
            roofs = higher(roofs, self.take())  # other programs kept these below what there is
            found = figures(cost, times, roofs, name, len(sets), cold)
        peers = [(own, self.timer.microseconds(calls)) for own, calls in self._peers(work, sets)]
        return beside(found, peers)

    def _peers(self, work: Work, sets: list[Arguments]) -> Iterator[tuple[str, list[Call]]]:
        """PyTorch's own ways: names, and calls that read as much other memory in turn."""
        if not work.has_matrix:
            nbytes = least(work, self.dtype).bytes
            few = sets[: sets_of(nbytes, self.timer.cache)]
            for ways in zip(*(list(baselines(work, one)) for one in few), strict=True):
                yield ways[0].name, [way.call for way in ways]
            return
        if not self._products:
            dense = max(work.n * (work.k or 1) * self.dtype.itemsize, 1)
            count = max(min(len(self.matrices), ROOM // dense), FEWEST)
            for matrix in self.matrices[:count]:
                for product in products(matrix, self.dtype):
                    self._products.setdefault(product.name, []).append(product)
        for name, same in self._products.items():
            if work.m <= same[0].most:
                x = sets[0][INPUT[work.op]]
                yield name, [partial(way.of, x) for way in same]


def figures(cost: Cost, times: Times, roofs: Roofs, dtype: str, sets: int, cold: bool) -> Figures:
    """What a median time says of an op of that cost, under roofs taken beside it."""
    seconds, bound = times.median / 1e6, roofs.bound(cost, dtype)
    tells = bound == "compute" or cold
    return Figures(
        us=times.median,
        us_low=times.low,
        us_high=times.high,
        graph=times.graph,
        sets=sets,
        cold=cold,
        bytes=cost.bytes,
        flops=cost.flops,
        gbps=cost.bytes / seconds / 1e9,
        tflops=cost.flops / seconds / 1e12,
        bound=bound,
        share=roofs.seconds(cost, dtype) / seconds if tells else None,
        memory_roof=roofs.memory,
        compute_roof=roofs.compute(dtype),
    )


def beside(found: Figures, peers: Sequence[tuple[str, Times]]) -> Figures:
    """The same with the fastest of PyTorch's own ways, if there is one that was timed alike."""
    alike = [peer for peer in peers if peer[1].graph == found.graph]
    if not alike:
        return found
    name, times = min(alike, key=lambda peer: peer[1].median)
    ratio = times.median / found.us
    return replace(found, baseline=name, baseline_us=times.median, ratio=ratio)

"""Runs CUDA C kernels on a CPU: each thread of a block is a fiber, and blocks run one by one."""

import ctypes
import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal

import torch

from llama2gpu.kernels.cuda import CudaLaunch, source
from tests.cuda.build import CompileError, build, runtime
from tests.cuda.library import Kernel, Library
from tests.cuda.memory import Copy, Edge, Pages
from tests.cuda.reports import EmulationError, Given, Report, failure, trespass

#: Which thread of those that can runs, and which block is next; a number: by chance, of that seed.
Order = Literal["ascending", "descending"] | int

ORDERS = {"ascending": 0, "descending": 1}
GRID_LIMITS = (2**31 - 1, 65535, 65535)
THREADS_LIMIT = 1024
#: Bytes of dynamic shared memory that the largest GPU of today has for a block.
SHARED_LIMIT = 227 * 1024
_PAGES = Pages()


class _Launch(ctypes.Structure):
    """`Launch` of emulator.h."""

    _fields_ = (
        ("call", ctypes.c_void_p),
        ("arguments", ctypes.c_void_p),
        ("statics", ctypes.c_void_p),
        ("grid", ctypes.c_uint * 3),
        ("threads", ctypes.c_uint),
        ("shared", ctypes.c_uint),
        ("order", ctypes.c_int),
        ("seconds", ctypes.c_int),
        ("seed", ctypes.c_ulonglong),
        ("first", ctypes.c_ulonglong),
        ("step", ctypes.c_ulonglong),
    )


@cache
def _library(name: str, text: str, options: tuple[str, ...]) -> Library:
    return Library(build(name, text, options))


@cache
def _native() -> Any:
    # keeps Python's lock, since there is one set of fibers
    function = ctypes.PyDLL(str(runtime())).emulator_launch
    function.restype = ctypes.c_bool
    return function


class Emulator:
    """A `Runner` for tensors on the CPU. A launch ends well, or it changes no tensor and raises.

    EmulationError: not all threads reach a barrier, or not all lanes a shuffle or vote, or they are
    elsewhere; memory is touched outside the storages, or misaligned; an array has no such element;
    a signed integer overflows; arguments do not fit the parameters; time is over. Shared memory
    begins as NaN. Races show as results that differ between orders: see `EveryOrder`.

    edge: the side of storages that is guarded from the first byte on; beyond the other, up to a
    page is read as NaN, and what is written is found afterwards. sources: texts of more files, by
    their names. seconds: of CPU time that a launch may take.
    """

    def __init__(
        self,
        order: Order = "ascending",
        edge: Edge = "end",
        sources: Mapping[str, str] | None = None,
        seconds: int = 120,
    ) -> None:
        self.order, self.edge, self.seconds = order, edge, seconds
        self.sources = dict(sources or {})

    def __call__(self, launch: CudaLaunch) -> None:
        """See `Runner`."""
        if launch.empty:
            return
        with self._ran(launch) as copies:
            for copy in copies:
                if copy.written:
                    copy.put_back()

    def results(self, launch: CudaLaunch) -> dict[int, bytes]:
        """What the launch would leave in the storages that it may write, by their addresses."""
        with self._ran(launch) as copies:
            return {copy.source: copy.read() for copy in copies if copy.written}

    def kernel(self, launch: CudaLaunch) -> Kernel:
        """The launch's kernel, compiled and loaded."""
        text = self.sources.get(launch.file) or source(launch.file)
        try:
            library = _library(f"{launch.file}.cu", text, launch.options)
        except CompileError as error:
            raise EmulationError(launch.kernel, f"does not compile:\n{error}") from None
        found = library.kernel(launch.kernel)
        if found is None:
            raise EmulationError(launch.kernel, f'is no extern "C" kernel of {launch.file}.cu')
        return found

    @contextmanager
    def _ran(self, launch: CudaLaunch) -> Iterator[list[Copy]]:
        """The copies of the launch's storages, after it."""
        kernel = self.kernel(launch)
        if why := _beyond_limits(launch) or kernel.refusal(launch.arguments):
            raise EmulationError(launch.kernel, why)
        copies: dict[int, Copy] = {}
        try:
            given = self._give(kernel, launch, copies)
            self._run(kernel, launch, given)
            if what := trespass(given):
                raise EmulationError(launch.kernel, what)
            yield list(copies.values())
        finally:
            for copy in copies.values():
                copy.free()

    def _give(self, kernel: Kernel, launch: CudaLaunch, copies: dict[int, Copy]) -> list[Given]:
        """The arguments; `copies` takes a copy of each storage, by the storages' addresses."""
        given = []
        for parameter, argument in zip(kernel.parameters, launch.arguments, strict=True):
            if not isinstance(argument, torch.Tensor):
                given.append(Given(parameter.name, argument, None))
                continue
            storage = argument.untyped_storage()
            begin = storage.data_ptr()
            if begin not in copies:
                copies[begin] = Copy(_PAGES, storage, self.edge)
            copy = copies[begin]
            copy.written |= not parameter.constant
            given.append(Given(parameter.name, copy.at + argument.data_ptr() - begin, copy))
        return given

    def _run(self, kernel: Kernel, launch: CudaLaunch, given: list[Given]) -> None:
        values = [
            parameter.value(one.value)
            for parameter, one in zip(kernel.parameters, given, strict=True)
        ]
        addresses = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        native = _Launch(
            kernel.call,
            ctypes.addressof(addresses),
            kernel.statics,
            launch.grid,
            launch.threads,
            launch.shared,
            ORDERS.get(str(self.order), 2),
            self.seconds,
            self.order if isinstance(self.order, int) else 0,
            *self._blocks(math.prod(launch.grid)),
        )
        report = Report()
        if not _native()(ctypes.byref(native), ctypes.byref(report)):
            raise failure(launch.kernel, report, given)

    def _blocks(self, count: int) -> tuple[int, int]:
        """The first block, and how many further the next is, modulo their number."""
        if self.order == "ascending":
            return 0, 1
        if self.order == "descending":
            return count - 1, count - 1
        chance = random.Random(self.order)
        steps = (chance.randrange(count) for _ in range(100))
        return chance.randrange(count), next((i for i in steps if math.gcd(i, count) == 1), 1)


class EveryOrder:
    """A `Runner` that runs a launch in several orders; EmulationError where the results differ."""

    def __init__(self, sources: Mapping[str, str] | None = None) -> None:
        self.first = Emulator("ascending", "end", sources)
        self.others = (
            Emulator("descending", "start", sources),
            Emulator(1, "end", sources),
            Emulator(2, "start", sources),
        )

    def __call__(self, launch: CudaLaunch) -> None:
        """See `Runner`."""
        if launch.empty:
            return
        results = self.first.results(launch)
        for other in self.others:
            found = other.results(launch)
            for begin, data in results.items():
                if found[begin] != data:
                    raise EmulationError(launch.kernel, self._difference(launch, begin, other))
        for begin, data in results.items():
            ctypes.memmove(begin, data, len(data))

    def _difference(self, launch: CudaLaunch, begin: int, other: Emulator) -> str:
        parameters = self.first.kernel(launch).parameters
        names = [
            f"{i} ({parameter.name})"
            for i, parameter in enumerate(parameters)
            if isinstance(one := launch.arguments[i], torch.Tensor)
            and one.untyped_storage().data_ptr() == begin
        ]
        return f"argument {', '.join(names)} depends on order: ascending or {other.order}"


def _beyond_limits(launch: CudaLaunch) -> str | None:
    if any(size > limit for size, limit in zip(launch.grid, GRID_LIMITS, strict=True)):
        return f"a grid of {launch.grid} is larger than {GRID_LIMITS}"
    if not 0 < launch.threads <= THREADS_LIMIT:
        return f"a block cannot have {launch.threads} threads"
    if not 0 <= launch.shared <= SHARED_LIMIT:
        return f"a block cannot have {launch.shared} bytes of dynamic shared memory"
    return None

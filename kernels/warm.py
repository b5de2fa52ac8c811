"""Compiling many kernels for the device at hand, so that none has to be while it is waited for."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from triton import AsyncCompileMode, knobs

from llama2gpu.kernels.launch import Launch


class Warmed(NamedTuple):
    """A launch whose kernel is ready. cached: it lay on disk already. error: "", or why not."""

    launch: Launch
    cached: bool
    error: str = ""


def warm(
    launches: Sequence[Launch],
    told: Callable[[int, int, Warmed], None] = lambda done, total, last: None,
    workers: int | None = None,
) -> list[Warmed]:
    """Compiles what `run` would, on the current device, many at a time; each kernel counts once.

    told: hears how many are ready, of how many, and the last one.
    """
    hits: dict[str, bool] = {}

    def listen(*, metadata: dict[str, Any], cache_hit: bool, **rest: Any) -> None:
        hits[metadata["hash"]] = cache_hit

    pool = ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 32))
    before, knobs.compilation.listener = knobs.compilation.listener, listen
    try:
        with AsyncCompileMode(pool, ignore_errors=True) as mode:
            try:
                waiting = _started(launches)
                done = dict(_finished(waiting, hits, told))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                for kernel in mode.future_kernels.values():
                    kernel.result(ignore_errors=True)  # what was cancelled is forgotten
                mode.raw_futures.clear()  # leaving would wait for what was cancelled
                raise
        # one that fails may take another with it: Triton's compiler is not quite safe for threads
        for i, (launch, _) in enumerate(waiting):
            if i not in done:
                done[i] = _alone(launch, hits)
                told(len(done), len(waiting), done[i])
        return [done[i] for i in range(len(waiting))]
    finally:
        knobs.compilation.listener = before
        pool.shutdown(cancel_futures=True)


def cache_folder() -> str:
    """Where Triton keeps what it compiled."""
    return str(knobs.cache.dir)


def _started(launches: Sequence[Launch]) -> list[tuple[Launch, Any]]:
    """Launches with their kernels, which may still be compiled; one for each kernel."""
    found: dict[int, tuple[Launch, Any]] = {}
    for launch in launches:
        if 0 not in launch.plan.grid:
            kernel = launch.warm()
            found.setdefault(id(kernel), (launch, kernel))
    return list(found.values())


def _finished(
    waiting: Sequence[tuple[Launch, Any]],
    hits: dict[str, bool],
    told: Callable[[int, int, Warmed], None],
) -> Iterator[tuple[int, Warmed]]:
    """Those that were compiled, by their place."""
    count = 0
    for i, (launch, kernel) in enumerate(waiting):
        try:
            made = kernel.result() if hasattr(kernel, "result") else kernel
        except Exception:  # of many kinds
            continue
        last, count = _loaded(launch, made, hits), count + 1
        told(count, len(waiting), last)
        yield i, last


def _alone(launch: Launch, hits: dict[str, bool]) -> Warmed:
    """Compiles and loads it here and now."""
    try:
        return _loaded(launch, launch.warm(), hits)
    except Exception as error:  # of many kinds
        return Warmed(launch, False, _reason(error))


def _loaded(launch: Launch, kernel: Any, hits: dict[str, bool]) -> Warmed:
    try:
        _ = kernel.run  # loads it, and makes what launches it
        return Warmed(launch, hits.get(kernel.hash, True))
    except Exception as error:  # the driver's
        return Warmed(launch, False, _reason(error))


def _reason(error: BaseException) -> str:
    """In a line, what the compiler raised at first: it tells of the places that led there, too."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    place = lines[0].startswith("at ") if lines else False
    return lines[-1 if place else 0] if lines else repr(error)

"""A trace of what runs, in Chrome's format: chrome://tracing and Perfetto show it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, record_function

from llama2gpu.backends.base import OPS, Backend
from llama2gpu.measure.results import check_file, new_file


@contextmanager
def profiling(path: Path | None, backend: Backend) -> Iterator[None]:
    """Records what runs in the block, the backend's ops by name, and writes it where it ends.

    The file appears whole or not at all, after an interrupt too. Where `path` is None nothing is
    recorded. Raises `ResultsError` where it can't be written, before anything runs.
    """
    if path is None:
        yield
        return
    check_file(path)
    activities = [ProfilerActivity.CPU]
    if backend.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # it reports its stages on stderr otherwise
    profiler = torch.profiler.profile(activities=activities)
    with named_ops(backend):
        profiler.start()
        try:
            yield
        finally:
            profiler.stop()
            with new_file(path) as work:
                profiler.export_chrome_trace(str(work))


@contextmanager
def named_ops(backend: Backend) -> Iterator[None]:
    """In the block each op of the backend is an event by its name, `layer` and `draw` as well."""
    names = [*OPS, "layer", "draw"]
    own = {name: vars(backend)[name] for name in names if name in vars(backend)}
    for name in names:
        setattr(backend, name, _recorded(name, getattr(backend, name)))
    try:
        yield
    finally:
        for name in names:
            with suppress(AttributeError):
                delattr(backend, name)
        vars(backend).update(own)


def _recorded(name: str, op: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **named: Any) -> Any:
        with record_function(name):
            return op(*args, **named)

    return run

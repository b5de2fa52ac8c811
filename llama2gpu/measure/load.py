"""Loading a checkpoint, timed beside reading the same bytes from its files."""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from llama2gpu.backends import resolve_device
from llama2gpu.checkpoints import open_checkpoint
from llama2gpu.checkpoints.save import save_huggingface
from llama2gpu.errors import RequestError
from llama2gpu.measure.decode import Clock, machine
from llama2gpu.measure.limits import synchronize
from llama2gpu.measure.results import Named, spread
from llama2gpu.measure.subject import Subject, watching, weight_memory
from llama2gpu.model import Model
from llama2gpu.weights import dtype_name

_WEIGHTS = (".safetensors", ".bin", ".pth", ".pt")
_BLOCK = 8 << 20


@dataclass(frozen=True)
class LoadRound:
    """Seconds until the weights are ready, and those of reading the same files."""

    load_seconds: float
    read_seconds: float


@dataclass(frozen=True)
class LoadResult(Named):
    """What was measured, on what; depth, batch and tokens are 0.

    cold: whether the files were dropped from the system's cache before each time.
    file_bytes: of the files of weights. weight_bytes: of all matrices as the backend keeps them.
    memory_bytes: peak of the first load, anonymous memory or that of a CUDA device's allocator;
        memory_ratio: that divided by `weight_bytes`. None where nothing tells.
    """

    cold: bool
    rounds: list[LoadRound]
    file_bytes: int
    weight_bytes: int
    memory_bytes: int | None
    memory_ratio: float | None
    machine: dict[str, str]

    def mean(self, field: str) -> tuple[float, float]:
        """Mean over the rounds of one of their fields, and the standard deviation."""
        values = [getattr(found, field) for found in self.rounds]
        return statistics.mean(values), spread(values)

    @property
    def read_ratio(self) -> float:
        """Median over the rounds of loading divided by reading."""
        return statistics.median(r.load_seconds / r.read_seconds for r in self.rounds)


def measure_load(
    subject: Subject,
    repeats: int = 5,
    *,
    folder: Path | None = None,
    cold: bool = False,
    clock: Clock = time.perf_counter,
) -> LoadResult:
    """Loads a checkpoint once for its memory, and then `repeats` times beside reading its files.

    folder: of a shape, where another process has written it (`write_shape`): what a process has
    freed before does not show in its peak. cold: drop the files from the system's cache before each
    time (Linux).
    """
    if cold and not hasattr(os, "posix_fadvise"):
        raise RequestError("this system can't drop files from its cache: measure without --cold")
    device = resolve_device("cpu" if subject.backend == "numpy" else subject.device)
    files = weight_files(folder or open_checkpoint(subject.model).path)

    def opened() -> Model:
        return subject.open(0) if folder is None else subject.open_folder(folder)

    with watching(device) as memory:
        model = opened()
        peak = memory.peak
    held, backend, kind = weight_memory(model), model.backend.name, dtype_name(model.dtype)
    del model
    rounds = [_round(opened, files, device, cold, clock) for _ in range(repeats)]
    return LoadResult(
        bench="load",
        model=subject.name,
        backend=backend,
        dtype=kind,
        quant=subject.quant,
        depth=0,
        batch=0,
        tokens=0,
        cold=cold,
        rounds=rounds,
        file_bytes=sum(path.stat().st_size for path in files),
        weight_bytes=held,
        memory_bytes=peak,
        memory_ratio=None if peak is None else peak / held,
        machine=machine(device),
    )


def write_shape(subject: Subject, folder: Path) -> None:
    """Writes random weights of a shape as a Hugging Face folder, quantized ones as such."""
    device = resolve_device("cpu" if subject.backend == "numpy" else subject.device)
    save_huggingface(subject.random(device), folder)


def weight_files(path: Path) -> list[Path]:
    """The files that hold the weights of a checkpoint, by its path."""
    if path.is_file():
        return [path]
    found: dict[str, list[Path]] = {}
    for file in sorted(path.iterdir()):
        if file.suffix in _WEIGHTS and file.is_file():
            found.setdefault(file.suffix, []).append(file)
    return next((found[suffix] for suffix in _WEIGHTS if suffix in found), [])


def _round(
    opened: Callable[[], Model],
    files: Sequence[Path],
    device: torch.device,
    cold: bool,
    clock: Clock,
) -> LoadRound:
    if cold:
        drop(files)
    began = clock()
    read(files)
    read_seconds = clock() - began
    if cold:
        drop(files)
    began = clock()
    model = opened()
    synchronize(device)
    load_seconds = clock() - began
    del model
    return LoadRound(load_seconds, read_seconds)


def read(files: Sequence[Path]) -> None:
    """Reads all bytes of the files, into one block of memory."""
    block = bytearray(_BLOCK)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass


def drop(files: Sequence[Path]) -> None:
    """Drops the files from the system's cache, so that they are read from the disk."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

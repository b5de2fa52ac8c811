"""The record of a training: metrics.jsonl, a line a step."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from llama2gpu.errors import RequestError
from llama2gpu.training.files import write_whole
from llama2gpu.training.loop import Record

NAME = "metrics.jsonl"


class Metrics:
    """Appends to the file in `folder`, less what it has of steps after `done`."""

    def __init__(self, folder: Path, done: int) -> None:
        self.path = folder / NAME
        kept = [line for record, line in _lines(self.path) if record.step <= done]
        write_whole(self.path, b"".join(kept))
        self._file: TextIO = self.path.open("a", encoding="utf-8")

    def add(self, record: Record) -> None:
        """Writes one step at once; raises `RequestError` where there is no space."""
        with self._told():
            self._file.write(json.dumps(asdict(record)) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """What was added outlives a loss of power; raises `RequestError` where it can't."""
        with self._told():
            os.fsync(self._file.fileno())

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RequestError(f"can't write {self.path}: {error.strerror}; make room") from error

    def close(self) -> None:
        """Closes the file."""
        with suppress(OSError):  # what did not fit was told of when it was added
            self._file.close()


def read_metrics(folder: Path) -> list[Record]:
    """The steps in the file, in order; a line that was cut off is left out."""
    return [record for record, _ in _lines(folder / NAME)]


def _lines(path: Path) -> list[tuple[Record, bytes]]:
    if not path.exists():
        return []
    found = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            found.append((_record(line), line))
        except (ValueError, TypeError, RecursionError):
            break
    return found


def _record(line: bytes) -> Record:
    record = Record(**json.loads(line))
    numbers = [record.loss, record.lr, record.tokens_per_second]
    if record.held_out is not None:
        numbers.append(record.held_out)
    whole = line.endswith(b"\n") and type(record.step) is int
    if not (whole and all(type(n) in (int, float) for n in numbers)):
        raise ValueError("no step")
    return record

"""Careful reading: regular files alone, so many bytes and no more, every failure one line."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from llama2gpu.errors import CheckpointError
from llama2gpu.files import one_line, read_regular

#: Most bytes of any header, JSON or pickled, that a reader takes in; real ones stay below 1 MiB.
HEADER_LIMIT = 4 << 20


@contextmanager
def blamed_on(path: Path, remedy: str) -> Iterator[None]:
    """Turns whatever a parser raises inside into a `CheckpointError` that names `path`."""
    try:
        yield
    except CheckpointError:
        raise
    except (Exception, RecursionError, MemoryError) as error:
        detail = one_line(error, 200) or type(error).__name__
        raise CheckpointError(f"{path} can't be read ({detail}): {remedy}") from error


def status(path: Path) -> os.stat_result | None:
    """`os.stat` of the path, links followed; None where nothing is there.

    Raises `CheckpointError` for what the system refuses: permissions, loops of links, long names.
    """
    try:
        return path.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise CheckpointError(
            f"{path} can't be reached: {error.strerror or error}; check its folders and links"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{str(path)!r} is not a path: {error}") from error


def file_size(path: Path) -> int:
    """Bytes of a regular file.

    Raises `CheckpointError` for whatever else lies there, pipes and devices included, and for an
    empty file.
    """
    found = status(path)
    if found is None:
        raise CheckpointError(f"{path} is missing: download the checkpoint again")
    if not stat.S_ISREG(found.st_mode):
        raise CheckpointError(f"{path} is not a regular file: give a checkpoint's file or folder")
    if not found.st_size:
        raise CheckpointError(f"{path} is empty: download it again")
    return found.st_size


def read_start(path: Path, count: int) -> bytes:
    """The first `count` bytes of a regular file, or all of a shorter one."""
    file_size(path)
    try:
        return read_regular(path, count)
    except OSError as error:
        raise CheckpointError(
            f"{path} can't be read: {error.strerror or error}; check its permissions"
        ) from error


def list_folder(path: Path) -> set[str]:
    """Names in a folder."""
    try:
        return {entry.name for entry in path.iterdir()}
    except OSError as error:
        raise CheckpointError(
            f"{path} can't be listed: {error.strerror or error}; check its permissions"
        ) from error


def present(folder: Path, *names: str) -> tuple[Path, ...]:
    """Those of the names that are in the folder, in the order given."""
    return tuple(folder / name for name in names if status(folder / name) is not None)


def tokenizers_beside(path: Path, vocab: int) -> tuple[Path, ...]:
    """Tokenizers that lie beside a model of one file, best first: llama2.c's names, then others."""
    own = f"tok{vocab}.bin"
    return present(path.parent, own, "tokenizer.bin", "tokenizer.model", "tokenizer.json")


def map_file(path: Path, size: int) -> torch.Tensor:
    """The first `size` bytes of a file as a mapped uint8 tensor; writes to it stay private."""
    with blamed_on(path, "check its permissions, and that nothing is still writing it"):
        return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)


def typed(span: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A span of bytes of a mapped file as numbers; a view of the map where it is aligned."""
    aligned = span.storage_offset() % dtype.itemsize == 0
    return (span if aligned else span.clone()).view(dtype)

"""Files that appear whole or not at all, and the folder that a training grows in."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llama2gpu import files
from llama2gpu.errors import RequestError

if sys.platform != "win32":
    import fcntl

#: What marks a folder as written by training; it records the arguments and the result.
RECORD = "training.json"


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all.

    Raises `RequestError` where the system refuses, no space left included; what lay at `path`
    stays as it was.
    """
    try:
        files.write_whole(path, data)
    except OSError as error:
        raise RequestError(
            f"can't write {path}: {error.strerror or error}; make room for it, or write elsewhere"
        ) from error


def read_record(folder: Path) -> dict[str, Any]:
    """What `RECORD` says, or nothing where there is none.

    Raises `RequestError` where it can't be read.
    """
    path = folder / RECORD
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_bytes())
        if isinstance(values, dict):
            return values
    except (OSError, ValueError, RecursionError):
        pass
    raise RequestError(f"{path} is damaged: start again with --overwrite")


def check_output(out: Path, overwrite: bool) -> None:
    """Raises `RequestError` unless `out` is free, empty, or a training's that may be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise RequestError(f"{out} exists: give another folder, or --overwrite to replace it")
    if not _is_ours(out):
        raise RequestError(
            f"{out} was not written by this command, so --overwrite does not touch it: "
            "give another folder"
        )


def find_work(out: Path, *, resume: bool, overwrite: bool) -> Path:
    """The work folder: that of the unfinished training, or the place for a new one.

    Raises `RequestError` where there is nothing to resume, something to lose, or another run.
    """
    _check_place(out)
    check_output(_aside(out), overwrite=resume or overwrite)
    work = out.with_name(out.name + ".training")
    if resume and not work.is_dir():
        done = " (it is finished)" if (out / RECORD).is_file() else ""
        raise RequestError(f"no unfinished training of {out}{done}: leave out --resume")
    if not work.exists():
        return work
    if not resume and not overwrite:
        raise RequestError(
            f"{work} holds an unfinished training: --resume continues it, --overwrite starts again"
        )
    if resume and not _is_ours(work):
        raise RequestError(f"{work} has no {RECORD}, so it is no training: give another folder")
    check_output(work, overwrite=True)
    with _held(work):
        return work


@contextmanager
def working(work: Path, *, fresh: bool) -> Iterator[None]:
    """The work folder, kept from other runs; a fresh one is empty."""
    if fresh and work.exists():
        with _held(work), _told(f"can't empty {work}", "give another folder"):
            aside = work.with_name(work.name + ".old")
            _remove(aside)
            work.rename(aside)
            _remove(aside)
    if fresh:
        with _told(f"can't make {work}", "give another folder"):
            work.mkdir(parents=True)
    with _held(work):
        yield


def publish(work: Path, out: Path) -> None:
    """Moves a finished folder to its place; what it replaces goes only once it is there.

    Raises `RequestError` where the system refuses.
    """
    aside = _aside(out)
    with _told(f"can't move {work} to {out}", "mend that, then --resume"):
        if out.exists():
            _remove(aside)
            out.rename(aside)
        work.rename(out)
        _remove(aside)


def _aside(out: Path) -> Path:
    return out.with_name(out.name + ".training.old")


def _is_ours(folder: Path) -> bool:
    """Whether training made it: it has a record, or nothing yet but a part of one."""
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    return RECORD in names or names <= {RECORD + files.PART}


def _check_place(out: Path) -> None:
    """Raises `RequestError` where no folder can be made, or the one there can't be renamed."""
    if not out.name or os.path.ismount(out):
        raise RequestError(f"{out} can't be replaced: give a folder in it")
    if Path.cwd().is_relative_to(out):
        raise RequestError(f"{out} holds the current folder: change to another, or give another")
    parent = next(path for path in out.parents if path.exists())
    if not parent.is_dir():
        raise RequestError(f"{parent} is no folder, so it can't hold {out}: give another folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise RequestError(f"can't write in {parent}: give another folder")


def _remove(folder: Path) -> None:
    """Removes a folder where there is one; its record goes last, so that it stays known."""
    if not folder.exists():
        return
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != RECORD:
            path.unlink()
    (folder / RECORD).unlink(missing_ok=True)
    folder.rmdir()


@contextmanager
def _told(what: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RequestError(f"{what}: {error.strerror or error}; {remedy}") from error


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Locks a folder, where the system can; raises `RequestError` where another run has it."""
    if sys.platform == "win32":
        yield
        return
    with _told(f"can't open {folder}", "give another folder"):
        number = os.open(folder, os.O_RDONLY)
    try:
        _lock(number, folder)
        yield
    finally:
        os.close(number)


def _lock(number: int, folder: Path) -> None:
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RequestError(
            f"{folder} is in use by another run: wait for it, or give another folder"
        ) from error
    except OSError:
        pass  # a file system without locks

"""Folders and files that appear whole or not at all: written beside their place, then renamed."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from llama2gpu.errors import RequestError
from llama2gpu.files import one_line

#: Errors of a full disk and of a full quota.
FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out`, which takes its place when the block ends.

    What was at `out` goes only once the new folder is there; where the block fails, nothing new is
    left. Raises `RequestError` where the system refuses.
    """
    with _beside(out) as work:
        yield work
        with writing(out):
            _finish(work)
            _replace(work, out)


@contextmanager
def new_files(out: Path) -> Iterator[Path]:
    """A hidden folder beside the file `out`; what it holds goes there when the block ends.

    The file `out` goes last. Where the block or a part of the move fails, all is as it was.
    Raises `RequestError` where the system refuses.
    """
    with _beside(out) as work:
        yield work
        with writing(out):
            _finish(work)
            _move(work, out)


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turns what the system refuses inside into a `RequestError` that names `out`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        detail = error.strerror if isinstance(error, OSError) else None
        detail = detail or one_line(error, 200)
        remedy = "make room for it, or write elsewhere" if _is_full(error) else "write elsewhere"
        raise RequestError(f"can't write {out}: {detail}; {remedy}") from error


def _is_full(error: OSError | SafetensorError) -> bool:
    """Whether there is no room; safetensors tells the number of the error in its text alone."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return any(f"(os error {number})" in str(error) for number in FULL)


def check_place(out: Path, source: Path | None = None) -> None:
    """Raises `RequestError` where no new folder can take the place, or where the input is."""
    place = out.resolve()
    if not place.name or os.path.ismount(place):
        raise RequestError(f"{out} can't be replaced: give a folder in it")
    if Path.cwd().is_relative_to(place):
        raise RequestError(f"{out} holds the current folder: change to another, or give another")
    if source is not None and source.resolve().is_relative_to(place):
        raise RequestError(f"{out} holds the model that is read: give another folder")
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise RequestError(f"{out} is no folder: give another name")


def check_file(out: Path, sources: Iterable[Path], overwrite: bool) -> None:
    """Raises `RequestError` where no new file can take the place, or where one of `sources` is."""
    if out.is_symlink() or (out.exists() and not out.is_file()):
        raise RequestError(f"{out} is no regular file: give another name")
    place = out.resolve()
    if any(place == source.resolve() for source in sources):
        raise RequestError(f"{out} is read by this command: give another name")
    if out.exists() and not overwrite:
        raise RequestError(f"{out} exists: give another name, or --overwrite to replace it")


def _finish(work: Path) -> None:
    """The permissions of any new folder, and every byte on the disk."""
    mask = os.umask(0)
    os.umask(mask)
    work.chmod(0o777 & ~mask)
    for path in work.iterdir():
        path.chmod(0o666 & ~mask)
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _replace(work: Path, out: Path) -> None:
    """Renames `work` to `out`; what lies there is moved aside first, and back where that fails."""
    aside = work.with_name(work.name + ".old")
    try:
        if out.exists():
            out.rename(aside)
        work.rename(out)
    finally:  # after an interrupt too, one whole folder is there
        if aside.exists() and not out.exists():
            aside.rename(out)
        shutil.rmtree(aside, ignore_errors=True)


def _move(work: Path, out: Path) -> None:
    """Moves the files of `work` to their places beside it, `out` last; back where that fails."""
    files = sorted(work.iterdir(), key=lambda path: path.name == out.name)
    aside = work / ".old"
    aside.mkdir()
    places = [out.parent / path.name for path in files]
    try:
        for path, place in zip(files, places, strict=True):
            if place.exists():
                place.rename(aside / path.name)
            path.rename(place)
    except BaseException:  # an interrupt too
        for path, place in zip(files, places, strict=True):
            if (aside / path.name).exists():
                (aside / path.name).replace(place)
            elif not path.exists():
                place.unlink()
        raise

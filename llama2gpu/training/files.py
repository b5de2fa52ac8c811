"""Files that appear whole or not at all, and the folder that a training grows in."""

import os
import shutil
from pathlib import Path

from llama2gpu.errors import RequestError

#: What marks a folder as written by training; it records the arguments and the result.
RECORD = "training.json"


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file beside `path` and renames it there.

    Raises `RequestError` where the system refuses, no space left included; what lay at `path`
    stays as it was.
    """
    beside = path.with_name(path.name + ".part")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise RequestError(
            f"can't write {path}: {error.strerror or error}; make room for it, or write elsewhere"
        ) from error


def work_folder(out: Path) -> Path:
    """Where a training's files are until it is done."""
    return out.with_name(out.name + ".training")


def check_output(out: Path, overwrite: bool) -> None:
    """Raises `RequestError` unless `out` is free, empty, or a training's that may be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise RequestError(f"{out} exists: give another folder, or --overwrite to replace it")
    if not (out.is_dir() and (out / RECORD).is_file()):
        raise RequestError(
            f"{out} was not written by this command, so --overwrite does not touch it: "
            "give another folder"
        )


def find_work(out: Path, *, resume: bool, overwrite: bool) -> Path:
    """The work folder: that of the unfinished training, or the place for a new one.

    Raises `RequestError` where there is nothing to resume, or something to lose.
    """
    if not out.name:
        raise RequestError(f"{out} can't be replaced: give another folder")
    check_output(out.with_name(out.name + ".old"), overwrite=True)
    work = work_folder(out)
    if resume and not work.is_dir():
        done = " (it is finished)" if (out / RECORD).is_file() else ""
        raise RequestError(f"no unfinished training of {out}{done}: leave out --resume")
    if resume or not work.exists():
        return work
    if not overwrite:
        raise RequestError(
            f"{work} holds an unfinished training: --resume continues it, --overwrite starts again"
        )
    check_output(work, overwrite)
    return work


def start_work(work: Path, *, fresh: bool) -> None:
    """Makes the work folder; a fresh start empties it."""
    try:
        if fresh and work.exists():
            shutil.rmtree(work)
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"can't make {work}: {error.strerror}; give another folder") from error


def publish(work: Path, out: Path) -> None:
    """Moves a finished folder to its place; what it replaces goes only once it is there."""
    old = out.with_name(out.name + ".old")
    if out.exists():
        if old.exists():
            shutil.rmtree(old)
        out.rename(old)
    work.rename(out)
    if old.exists():
        shutil.rmtree(old)

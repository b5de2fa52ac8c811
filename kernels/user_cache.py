"""The folder in the user's cache where what was compiled and measured here is kept."""

import logging
import os
import tempfile
from functools import cache
from pathlib import Path


def cache_folder() -> Path:
    """Where it is, made or not. Raises `RuntimeError` where the user has no home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llama2gpu"


def trusted_folder() -> Path:
    """The folder, made, for what is run from it: the user alone writes there, or `OSError`."""
    folder = cache_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = folder.stat()
    if os.name != "posix":  # elsewhere a user's folder is the user's by other means
        return folder
    if state.st_mode & 0o022:
        raise PermissionError(
            f"others can write to {folder}: chmod go-w it, so that it can be trusted"
        )
    if state.st_uid != os.getuid():
        raise PermissionError(
            f"{folder} is another user's: set XDG_CACHE_HOME to a folder of yours"
        )
    return folder


def check_writable(folder: Path) -> None:
    """Makes a folder; raises `OSError` where nothing can be written there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file, whole or not at all, and the folder that it lies in.

    Several processes may do so at once: each has a name of its own beside it meanwhile.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


@cache
def warn_once(line: str) -> None:
    """Logs a line about a file there, however often it is looked at."""
    logging.getLogger("llama2gpu").warning(line)

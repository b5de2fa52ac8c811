"""What every reader of files needs: regular files alone, and errors of one line."""

import errno
import os
import stat
from pathlib import Path

#: What the name of a file ends in while it is written.
PART = ".part"


def read_regular(path: Path, count: int) -> bytes:
    """The first `count` bytes of a regular file, or all of a shorter one.

    Raises `OSError` where it can't be read, and for pipes and devices, which could block forever.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    with path.open("rb") as file:
        return file.read(count)


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file beside `path` and renames it there; `OSError` where the system refuses.

    What lay at `path` then stays as it was, and nothing is left beside it.
    """
    beside = path.with_name(path.name + PART)
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def one_line(message: object, limit: int = 1000) -> str:
    """The text in one line of printable characters, at most `limit` of them.

    White space, line breaks included, becomes single spaces; what can't be printed is escaped;
    the middle of what is too long is left out, as the remedy stands at the end.
    """
    line = " ".join(str(message).split())
    if not line.isprintable():
        letters = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
        line = "".join(letters)
    if len(line) <= limit:
        return line
    tail = limit // 3
    return f"{line[: limit - tail - 3]}...{line[-tail:]}"

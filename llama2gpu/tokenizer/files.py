"""Reading a tokenizer's file, and holding it against its checkpoint."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llama2gpu.errors import TokenizerError

#: Far above any published tokenizer; what a damaged or mistaken file may cost in memory.
MAX_BYTES = 64 << 20
MAX_TOKENS = 1 << 20

#: Rows by which checkpoints pad their embedding beyond the tokenizer (32000 to 32064, say).
PADDING = 1024

REMEDY = "give the right one with --tokenizer PATH"


def read_file(path: Path) -> bytes:
    """All bytes of a tokenizer file.

    Raises `TokenizerError` where it can't be read, is empty, or is far too large.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise TokenizerError(f"can't read the tokenizer {path}: {error.strerror}") from None
    if not data:
        raise TokenizerError(f"the tokenizer {path} is empty; {REMEDY}")
    if len(data) > MAX_BYTES:
        raise TokenizerError(
            f"{path} is larger than {MAX_BYTES >> 20} MiB, so it is no tokenizer; {REMEDY}"
        )
    return data


def damaged(path: Path, what: str) -> TokenizerError:
    """The error of a file whose content can't be a tokenizer's; `what` is shortened to a line."""
    line = " ".join(what.split())
    short = line if len(line) <= 200 else f"{line[:197]}..."
    return TokenizerError(f"the tokenizer {path} is damaged or of another kind: {short}; {REMEDY}")


def check_vocab(path: Path, tokens: int, rows: int | None, padding: int = PADDING) -> None:
    """Raises `TokenizerError` unless `tokens` ids fit `rows` embedding rows.

    Every id needs a row; fewer than `padding` rows may have no id. Without `rows`, anything fits.
    """
    if rows is None or rows - max(padding, 1) < tokens <= rows:
        return
    raise TokenizerError(
        f"the tokenizer {path} has {tokens} tokens, but the checkpoint has {rows} embedding rows: "
        f"it belongs to another checkpoint; {REMEDY}"
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Drops what native code writes to stderr, such as the report of a Rust panic.

    For the whole process, so only while a file is read.
    """
    try:
        saved = os.dup(2)
    except OSError:  # there is no stderr
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)

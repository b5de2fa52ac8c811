"""Reading a tokenizer's file, and holding it against its checkpoint."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llama2gpu.errors import TokenizerError
from llama2gpu.files import one_line, read_regular

#: Far above any published tokenizer; what a damaged or mistaken file may cost in memory.
MAX_BYTES = 64 << 20
MAX_TOKENS = 1 << 20

#: Rows by which checkpoints pad their embedding beyond the tokenizer (32000 to 32064, say).
PADDING = 1024

REMEDY = "give the right one with --tokenizer PATH"


def read_file(path: Path) -> bytes:
    """All bytes of a tokenizer file.

    Raises `TokenizerError` where it can't be read, is no regular file, is empty or far too large.
    """
    try:
        data = read_regular(path, MAX_BYTES + 1)
    except OSError as error:
        raise TokenizerError(
            f"can't read the tokenizer {path}: {error.strerror}; {REMEDY}"
        ) from None
    if not data:
        raise TokenizerError(f"the tokenizer {path} is empty; {REMEDY}")
    if len(data) > MAX_BYTES:
        raise TokenizerError(
            f"{path} is larger than {MAX_BYTES >> 20} MiB, so it is no tokenizer; {REMEDY}"
        )
    return data


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is no file.

    Raises `TokenizerError` where it is anything else.
    """
    if not exists(path):
        return {}
    try:
        content = json.loads(read_file(path))
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"no JSON ({error})") from None
    if not isinstance(content, dict):
        raise damaged(path, "no JSON object")
    return content


def exists(path: Path) -> bool:
    """Whether something lies there, or may: where that can't be told, reading it says why."""
    try:
        return path.exists()
    except OSError:
        return True


def damaged(path: Path, what: str) -> TokenizerError:
    """The error of a file whose content can't be a tokenizer's; `what` is shortened to a line."""
    short = one_line(what, 200)
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

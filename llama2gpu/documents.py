"""Text files as documents."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from llama2gpu.errors import RequestError

#: A line that is exactly this stands between two documents of a file.
SEPARATOR = "<|endoftext|>"


def read_documents(paths: Sequence[Path]) -> list[str]:
    """The documents of UTF-8 text files, in order, the empty ones left out.

    Raises `RequestError` for a file that is missing, empty, or no text.
    """
    documents = [document for path in paths for document in _split(_decode(_read(path), str(path)))]
    return _some(documents)


def parse_documents(data: bytes, name: str) -> list[str]:
    """The documents of a file's bytes, as `read_documents` gives them; errors call it `name`."""
    return _some(list(_split(_decode(data, name))))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RequestError(f"can't read {path}: {error.strerror}; give text files") from error


def _decode(data: bytes, name: str) -> str:
    if not data.strip():
        raise RequestError(f"{name} is empty: give a file of text")
    if b"\0" in data:
        raise RequestError(f"{name} has NUL bytes, so it is no text: give UTF-8 text files")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{name} is not UTF-8 (byte {error.start}): convert it, with iconv -t UTF-8 say"
        ) from error


def _split(text: str) -> Iterator[str]:
    lines: list[str] = []
    for line in [*text.replace("\r\n", "\n").split("\n"), SEPARATOR]:
        if line != SEPARATOR:
            lines.append(line)
            continue
        if document := "\n".join(lines).strip("\n"):
            yield document
        lines = []


def _some(documents: list[str]) -> list[str]:
    if not documents:
        raise RequestError(f"no text between the lines {SEPARATOR}: give text files")
    return documents

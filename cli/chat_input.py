"""What a person types to a model, line by line or a block at a time."""

import sys
from contextlib import suppress
from typing import NamedTuple

import click

from llama2gpu.errors import RequestError

#: Bytes of a turn at most.
LIMIT = 16 << 20
BLOCK = '"""'


class Turn(NamedTuple):
    """A text for the model, or a command without its slash."""

    text: str
    command: bool = False


class Input:
    """Standard input as turns; where it is a terminal, with a prompt and a line editor."""

    def __init__(self) -> None:
        if sys.stdin is None:
            raise RequestError("standard input is closed: open it, or pipe the turns in")
        self.terminal = sys.stdin.isatty()
        self._editor = self.terminal and sys.stdout.isatty()
        if self._editor:
            with suppress(ImportError):
                import readline  # noqa: F401  `input` edits lines once it is there
            sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]

    def turn(self) -> Turn | None:
        """The next turn that is not blank, or None at the end.

        A line that ends in a backslash goes on in the next one; what begins with three quotation
        marks goes on until three others; / begins a command, // a text with one slash.
        """
        while (line := self._line("> ")) is not None:
            if line.lstrip().startswith(BLOCK):
                return Turn(self._block(line.lstrip().removeprefix(BLOCK)))
            if line.startswith("/") and not line.startswith("//"):
                return Turn(line[1:].strip(), command=True)
            text = self._continued(line.removeprefix("/") if line.startswith("//") else line)
            if text.strip():
                return Turn(text)
        return None

    def _continued(self, line: str) -> str:
        lines = []
        while line.endswith("\\"):
            lines.append(line[:-1])
            _check(lines)
            line = self._line(". ") or ""
        return "\n".join([*lines, line])

    def _block(self, line: str) -> str:
        lines = []
        while not line.rstrip().endswith(BLOCK):
            lines.append(line)
            _check(lines)
            if (following := self._line(". ")) is None:
                return "\n".join(lines)
            line = following
        return "\n".join([*lines, line.rstrip().removesuffix(BLOCK)])

    def _line(self, prompt: str) -> str | None:
        """The next line without its end, or None; undecodable bytes are lone surrogates."""
        if self._editor:
            try:
                return input(prompt)
            except EOFError:
                click.echo(err=True)
                return None
        if self.terminal:
            click.echo(prompt, nl=False, err=True)
        data = sys.stdin.buffer.readline(LIMIT + 1)
        _check([data])
        return data.decode("utf-8", "surrogateescape").rstrip("\r\n") if data else None


def _check(lines: list[str] | list[bytes]) -> None:
    if sum(map(len, lines)) > LIMIT:
        raise RequestError(f"a turn is longer than {LIMIT >> 20} MiB: give less text")

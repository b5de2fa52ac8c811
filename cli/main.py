"""The command `llama2gpu`: its subcommands, and how each of them ends."""

import importlib
import logging
import os
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click

from llama2gpu.errors import Llama2GPUError

NAME = "llama2gpu"

#: Name of a subcommand → the module whose `command` it is, and the first line of its help.
COMMANDS = {
    "run": ("llama2gpu.cli.run", "Generate text from PROMPT."),
    "chat": ("llama2gpu.cli.chat", "Talk with a model."),
    "serve": ("llama2gpu.cli.serve", "Serve a model over HTTP, by OpenAI's API."),
    "doctor": ("llama2gpu.cli.doctor", "Say what can run on this machine, and what can't and why."),
    "kernels": (
        "llama2gpu.cli.kernels",
        "List the GPU kernels, take them apart, compare, compile them ahead, tune or choose.",
    ),
    "bench": ("llama2gpu.cli.bench", "Measure whole models and single ops, and compare runs."),
    "plan": (
        "llama2gpu.cli.plan",
        "Say what a model takes of the device's memory, and what would fit if it does not.",
    ),
    "inspect": ("llama2gpu.cli.inspect", "Show what a checkpoint holds."),
    "tokenize": ("llama2gpu.cli.tokenize", "Show the tokens of a text."),
    "convert": (
        "llama2gpu.cli.convert",
        "Write a checkpoint in another format, with its tokenizer.",
    ),
    "quantize": (
        "llama2gpu.cli.quantize",
        "Quantize a checkpoint into a Hugging Face FOLDER.",
    ),
    "eval": (
        "llama2gpu.cli.eval",
        "Measure how well a model predicts TEXT, and what quantization costs.",
    ),
    "train": ("llama2gpu.cli.train", "Train a small Llama on text files."),
}


class LazyCommand(click.Command):
    """Stands for a command in the group's help, and imports it once it is called."""

    def __init__(self, name: str, module: str, summary: str) -> None:
        super().__init__(name, help=summary)
        self.module = module

    def load(self) -> click.Command:
        """The command itself."""
        command = importlib.import_module(self.module).command
        assert isinstance(command, click.Command)
        return command

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """The context of the command itself, which the group then runs in this one's place."""
        return self.load().make_context(*args, **extra)


class Program(click.Group):
    """A group that ends in an exit status and, after a user's mistake, in one line on stderr."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; Ctrl-C ends it without a word."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(130)

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Run a command and exit: 0, 1 after an error, 2 after wrong usage, 130 after Ctrl-C."""
        show_all(sys.stdout)
        try:
            try:
                with telling():
                    status = super().main(*args, **(extra | {"standalone_mode": False})) or 0
            finally:
                flush(sys.stdout)
        except click.ClickException as error:
            error.show()
            status = error.exit_code
        except (click.Abort, KeyboardInterrupt):
            status = 130
        except BrokenPipeError:
            status = 1
        except (Llama2GPUError, OSError, MemoryError) as error:
            click.echo(f"{NAME}: error: {one_line(error)}", err=True)
            status = 1
        except RuntimeError as error:  # PyTorch has no narrower one for the CPU
            if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
                raise
            click.echo(f"{NAME}: error: {one_line(MemoryError())}", err=True)
            status = 1
        sys.exit(status)


class Teller(logging.Handler):
    """Prints what is logged on stderr, each line once."""

    def __init__(self) -> None:
        super().__init__()
        self.told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """The message alone."""
        if (line := record.getMessage()) not in self.told:
            self.told.add(line)
            click.echo(line, err=True)


@contextmanager
def telling() -> Iterator[None]:
    """The package's warnings on stderr, for as long as the block lasts."""
    logger, teller = logging.getLogger(NAME), Teller()
    logger.addHandler(teller)
    try:
        yield
    finally:
        logger.removeHandler(teller)


def one_line(error: Exception) -> str:
    """What an error says to a user."""
    if isinstance(error, MemoryError):
        return "out of memory: close other programs, or take a smaller model or context"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


def show_all(stream: Any) -> None:
    """Write what the stream's encoding lacks as an escape, instead of failing over it."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")


def flush(stream: Any) -> None:
    """Flush; where that fails, drop the rest, or Python would try again at exit, and complain."""
    try:
        if stream is not None:
            stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise


def version() -> str:
    """The version of this code: a checkout's own, and else that of the installed package."""
    project = Path(__file__).resolve().parents[1] / "pyproject.toml"
    if project.is_file():
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])
    from importlib import metadata

    return metadata.version(NAME)


def show_version(ctx: click.Context, option: click.Parameter, wanted: bool) -> None:
    """Print the version and exit, where that is wanted."""
    if wanted and not ctx.resilient_parsing:
        click.echo(f"{NAME} {version()}")
        ctx.exit()


@click.group(
    NAME,
    cls=Program,
    commands={name: LazyCommand(name, *entry) for name, entry in COMMANDS.items()},
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=show_version,
    help="Show the version and exit.",
)
def program() -> None:
    """Run Llama-family models from kernels that a person can read, check and measure."""


def main() -> NoReturn:
    """Entry point of the program."""
    program.main(prog_name=NAME)

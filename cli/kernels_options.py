"""Options of `llama2gpu kernels` that several of its commands take, and how they print."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import torch
    from rich.table import Table

#: Columns of a table that does not go to a terminal.
WIDTH = 100


def split(ctx: click.Context, param: click.Parameter, value: str) -> list[str]:
    """Callback of a list with commas between."""
    return list(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))


def split_numbers(ctx: click.Context, param: click.Parameter, value: str) -> list[int]:
    """Callback of a list of whole numbers from 1 on."""
    parts = split(ctx, param, value)
    if not parts or not all(p.isdecimal() and len(p) < 8 and int(p) > 0 for p in parts):
        raise click.BadParameter(f"{value!r:.60} is not a list of numbers such as 1,16,128.")
    return [int(part) for part in parts]


shape = click.option(
    "--shape", default="llama2-7b", show_default=True, metavar="NAME", help="Sizes of the model."
)
ops = click.option(
    "--op", "ops", default="all", show_default=True, metavar="NAMES", callback=split,
    help="Ops, with commas between.",
)  # fmt: skip
weights = click.option(
    "--weight", "weights", default="all", show_default=True, metavar="KINDS", callback=split,
    help="Of int4, int8 and dense.",
)  # fmt: skip
tokens = click.option(
    "--tokens", default="1,16,128", show_default=True, metavar="NUMBERS", callback=split_numbers,
    help="New tokens: up to 64 of as many sequences, else of one prompt.",
)  # fmt: skip
context = click.option(
    "--context", type=click.IntRange(1), default=512, show_default=True,
    help="Tokens of a sequence in the cache.",
)  # fmt: skip


def works(
    shape: str, ops: list[str], weights: list[str], tokens: list[int], context: int
) -> list[Any]:
    """The uses of ops that the options name."""
    from llama2gpu.measure import kernel_work
    from llama2gpu.measure.shapes import SHAPES

    name = choose_one("shape", shape, SHAPES)
    chosen_ops = choose("op", ops, kernel_work.OPS)
    kinds = choose("kind of weight", weights, kernel_work.WEIGHTS)
    return list(kernel_work.works(SHAPES[name], chosen_ops, kinds, tokens, context))


def choose_one(what: str, asked: str, known: Any) -> str:
    """The name asked for; raises `BackendError` for one that is not known, such as "all"."""
    from llama2gpu.errors import BackendError

    if asked not in known:
        raise BackendError(f"unknown {what} {asked!r}: choose {', '.join(known)}")
    return asked


def choose(what: str, asked: list[str], known: Any) -> list[str]:
    """The names asked for, or all; raises `BackendError` for one that is not known."""
    from llama2gpu.errors import BackendError

    if asked == ["all"]:
        return list(known)
    for name in asked or [""]:
        if name not in known:
            raise BackendError(f"unknown {what} {name!r}: choose {', '.join(known)}")
    return asked


def gpu(device: str, doing: str) -> "torch.device":
    """The GPU of that name, on which Triton's kernels run; raises `BackendError` without one."""
    from llama2gpu.backends import probe, resolve_device
    from llama2gpu.errors import BackendError

    place = resolve_device(device)
    if place.type != "cuda":
        raise BackendError(
            f"kernels can't be {doing} for {place.type}: this needs a GPU, so run it on the machine"
            " that has it (`llama2gpu doctor` says what PyTorch sees)"
        )
    ok, detail = probe("triton", place)
    if not ok:
        raise BackendError(f"kernels can't be {doing}: {detail}")
    return place


@contextmanager
def counting(
    quiet: bool, doing: str, lines: bool = False
) -> Iterator[Callable[[int, int, str], None]]:
    """A line on stderr that tells what is being done, where that is a terminal.

    lines: elsewhere one line for each thing that is begun.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        silent = quiet or not lines
        yield (
            lambda done, total, what: (
                None if silent else click.echo(f"{done + 1}/{total}  {doing} {what}", err=True)
            )
        )
        return
    columns = (
        TextColumn(doing),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, what: bar.update(
            task, completed=done, total=total, description=what
        )


def short(kernel: str) -> str:
    """A kernel's name without what all of them have."""
    return kernel.removeprefix("_").removesuffix("_kernel")


def show(table: "Table") -> None:
    """A table on stdout, as wide as the terminal."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)  # names may hold brackets
    if not console.is_terminal:
        console.width = WIDTH
    console.print(table)

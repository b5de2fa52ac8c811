"""Options of `llama2gpu bench` that several of its commands take, and how they run and print."""

import json
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from llama2gpu.cli import options

if TYPE_CHECKING:
    from rich.table import Table

    from llama2gpu.measure.subject import Subject

T = TypeVar("T")
#: The keys of `measure.shapes.SHAPES`, whose import would take a second.
SHAPES = ("stories260k", "llama-1.1b", "llama2-7b", "llama2-13b", "llama2-70b", "llama3-8b")


def numbers(least: int, most: int) -> Callable[[click.Context, click.Parameter, str], list[int]]:
    """Callback of a list of whole numbers from `least` to `most`, with commas between."""

    def read(ctx: click.Context, param: click.Parameter, value: str) -> list[int]:
        parts = [part.strip() for part in value.split(",")]
        if not all(p.isdecimal() and len(p) < 8 and least <= int(p) <= most for p in parts):
            what = f"numbers from {least} to {most:,}, with commas between"
            raise click.BadParameter(f"{value!r:.60} is not a list of {what}.")
        return list(dict.fromkeys(map(int, parts)))

    return read


output = click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
    help="Write what was measured to this file, for `bench compare`.",
)  # fmt: skip


def subjects(function: Any) -> Any:
    """All options that say what is measured, on what, and how often."""
    made = [
        click.option(
            "--shape", "shapes", multiple=True, type=click.Choice(SHAPES),
            help="Random weights of these sizes; may be repeated.",
        ),
        options.model,
        click.option(
            "--dtype", "dtypes", multiple=True, default=("auto",), show_default=True,
            type=click.Choice(["auto", "fp32", "fp16", "bf16"]),
            help="Type of the weights; auto of a shape is bf16; may be repeated.",
        ),
        click.option(
            "--quant", "quants", multiple=True, metavar="SPEC", callback=read_quants,
            help="none, int8, int4:32 or int4+head, say; may be repeated.  [default: none]",
        ),
        options.backend,
        options.device,
        options.threads,
        click.option(
            "--repeats", type=click.IntRange(1), default=5, show_default=True,
            help="Rounds that are measured, after one that warms up.",
        ),
        output,
        options.as_json,
        options.quiet,
    ]  # fmt: skip
    for option in reversed(made):
        function = option(function)
    return function


def read_quants(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> Any:
    """Callback of --quant: each is "none" or what `parse_spec` takes."""
    found = dict.fromkeys(values or ("none",))
    if set(found) == {"none"}:
        return tuple(found)
    from llama2gpu.errors import RequestError
    from llama2gpu.quant.spec import CALIBRATED, parse_spec

    for value in found:
        if value == "none":
            continue
        try:
            spec = parse_spec(value)
        except RequestError as error:
            raise click.BadParameter(f"{error}.") from None
        if spec.method in CALIBRATED:
            raise click.BadParameter(f"{value} needs a text to fit to: take rtn or hqq.")
    return tuple(found)


def depths(default: str) -> Callable[[Any], Any]:
    """--depth, a list of numbers."""
    return click.option(
        "--depth", "depths", default=default, show_default=True, metavar="NUMBERS",
        callback=numbers(0, 1 << 20), help="Tokens of a sequence that are cached before.",
    )  # fmt: skip


batches = click.option(
    "--batch", "batches", default="1", show_default=True, metavar="NUMBERS",
    callback=numbers(1, 256), help="Sequences at once.",
)  # fmt: skip
profile = click.option(
    "--profile", type=click.Path(path_type=Path), metavar="FILE",
    help="Write a trace of what runs, in Chrome's format (chrome://tracing, Perfetto).",
)  # fmt: skip


def chosen(values: dict[str, Any]) -> "list[Subject]":
    """The models that the options name, each in every type and quantization."""
    check_output(values["output"])
    from llama2gpu.api import DEFAULT_MODEL
    from llama2gpu.measure.subject import Subject

    names = [*dict.fromkeys(values["shapes"]), *([values["model"]] if values["model"] else [])]
    alike = {name: values[name] for name in ("backend", "device", "threads")}
    return [
        Subject(model, dtype=dtype, quant=quant, **alike)
        for model in names or [str(DEFAULT_MODEL)]
        for dtype in dict.fromkeys(values["dtypes"])
        for quant in values["quants"]
    ]


def check_output(path: Path | None) -> None:
    """Raises `ResultsError` where a file is asked for that can't be written."""
    from llama2gpu.measure.results import check_file

    if path is not None:
        check_file(path)


def check_profile(profile: Path | None, configurations: int) -> None:
    """Refuses a trace of several things, and one that can't be written."""
    check_output(profile)
    if profile is not None and configurations > 1:
        raise click.UsageError("--profile is of one model in one case: ask for a single one.")


def wrote(profile: Path | None, quiet: bool) -> None:
    """Says what lies where the trace was asked for."""
    if profile is not None and not quiet:
        size = profile.stat().st_size / 1e6
        click.echo(f"trace of {size:.1f} MB in {profile}: open it in Perfetto", err=True)


def apart(work: Callable[[], T]) -> T:
    """The result of work that is done in a process of its own, with memory of its own."""
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    control_c = signal.SIGINT, signal.SIG_DFL  # without a traceback
    with ProcessPoolExecutor(1, get_context("spawn"), signal.signal, control_c) as process:
        try:
            return process.submit(work).result()
        except BrokenProcessPool as error:
            raise MemoryError from error  # the system ends a process that takes too much


def told(quiet: bool, number: int, total: int, what: str) -> None:
    """A line on stderr for each model that is begun."""
    if not quiet:
        click.echo(f"{number}/{total}  measuring {what}", err=True)


def keep(results: Sequence[Any], values: dict[str, Any]) -> None:
    """Writes what there is so far where that was asked for: what comes next may fail."""
    from llama2gpu.measure.results import write_results

    if values["output"] is not None:
        write_results(values["output"], results)


def finish(
    results: Sequence[Any], values: dict[str, Any], table: Callable[[Sequence[Any]], "Table"]
) -> None:
    """Prints the results, as a table or as JSON."""
    from llama2gpu.measure.results import document

    if values["as_json"]:
        click.echo(json.dumps(document(results), allow_nan=False))
        return
    show(table(results))
    if not values["quiet"]:
        click.echo(" · ".join(results[0].machine.values()), err=True)


def new_table(left: Iterable[str], right: Iterable[str]) -> "Table":
    """An empty table with these headings."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in left:
        made.add_column(heading, no_wrap=True)
    for heading in right:
        made.add_column(heading, justify="right", no_wrap=True)
    return made


def show(table: "Table") -> None:
    """The table on stdout, as wide as it is where that is no terminal; names may hold brackets."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 160
    Console(width=width, highlight=False, markup=False).print(table)


def plus_minus(mean: float, deviation: float, digits: int) -> str:
    """A mean, give or take a standard deviation, which a single round has not."""
    if not deviation:
        return f"{mean:,.{digits}f}"
    return f"{mean:,.{digits}f} ± {deviation:,.{digits}f}"


def figure(value: float | None, form: str) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None else format(value, form)

"""`llama2gpu kernels choose`: the fastest backend on this device, measured and remembered."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import click

from llama2gpu.cli import bench_options, options
from llama2gpu.cli.explain import per_second
from llama2gpu.cli.kernels_options import counting, show, split

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from llama2gpu.measure.choose import Trial
    from llama2gpu.measure.subject import Subject

T = TypeVar("T")
DEPTH = 128


@click.command("choose")
@click.option(
    "--shape", type=click.Choice(bench_options.SHAPES),
    help="Random weights of these sizes.  [default: llama-1.1b]",
)  # fmt: skip
@options.model
@click.option(
    "--quant", "quants", multiple=True, metavar="SPEC", callback=bench_options.read_quants,
    default=("none", "int8", "int4"), show_default=True,
    help="Weights to choose for, each kind by itself; may be repeated.",
)  # fmt: skip
@click.option(
    "--backend", "backends", default="all", show_default=True, metavar="NAMES", callback=split,
    help="Backends to choose between, with commas between; all that run here.",
)  # fmt: skip
@options.device
@options.threads
@click.option(
    "--tokens", type=click.IntRange(1), default=16, show_default=True,
    help=f"Tokens to generate behind {DEPTH}.",
)  # fmt: skip
@click.option(
    "--repeats", type=click.IntRange(1), default=3, show_default=True,
    help="Rounds that are measured, after one that warms up.",
)  # fmt: skip
@click.option("--forget", is_flag=True, help="Forget what was measured on this device.")
@options.as_json
@options.quiet
def choose_command(
    shape: str | None, model: str | None, quants: tuple[str, ...], backends: list[str],
    device: str, threads: int | None, tokens: int, repeats: int, forget: bool, as_json: bool,
    quiet: bool,
) -> None:  # fmt: skip
    """Measure which backend decodes fastest here, and let auto take it from now on.

    Each backend that runs on the device generates with the same weights, in a process of its own.
    The rates go into a file in the user's cache, for this device and these versions of all that
    computes; with others, or where LLAMA2GPU_NO_CHOSEN is set, auto goes by its rule. `llama2gpu
    doctor` shows what is remembered.
    """
    if shape and model:
        raise click.UsageError("--shape and --model exclude each other.")
    from llama2gpu.backends import resolve_device
    from llama2gpu.measure.choose import candidates, trials
    from llama2gpu.measure.model_result import Case
    from llama2gpu.measure.subject import Subject

    subject = Subject(model or shape or "llama-1.1b", device=device, threads=threads)
    place = resolve_device(device)
    if forget:
        from llama2gpu.backends.chosen import forget as forget_all

        click.echo("forgotten" if kept(partial(forget_all, place)) else "nothing was remembered")
        return
    from llama2gpu.backends.chosen import check_kept

    kept(partial(check_kept, place))
    found = candidates(place, backends)
    runs = running(found, backends, quiet)
    case = Case("decode", DEPTH, 1, tokens)
    with counting(quiet, "measuring", lines=True) as told:
        tried = list(trials(subject, quants, runs, case, repeats, bench_options.apart, told))
    report(place, subject, tried, as_json)


def running(found: dict[str, str], asked: Sequence[str], quiet: bool) -> list[str]:
    """Those that run; what was asked for by name must, and else one is enough."""
    from llama2gpu.errors import BackendError

    for name, problem in found.items():
        if problem and list(asked) != ["all"]:
            raise BackendError(f"backend {name!r} can't run here: {problem}")
        if problem and not quiet:
            click.echo(f"without {name}: {problem}", err=True)
    return [name for name, problem in found.items() if not problem]


def kept(work: Callable[[], T]) -> T:
    """The result of what reads or writes the user's cache."""
    from llama2gpu.errors import BackendError

    try:
        return work()
    except RuntimeError as error:
        raise BackendError("there is no home folder to write to: set XDG_CACHE_HOME") from error


def report(
    place: "torch.device", subject: "Subject", tried: "Sequence[Trial]", as_json: bool
) -> None:
    """Remembers the rates and prints them."""
    from llama2gpu.backends.chosen import hardware, remember
    from llama2gpu.errors import BackendError
    from llama2gpu.measure.choose import measured

    best = measured(tried)
    if not best:
        raise BackendError(f"no backend could be measured: {tried[0].backend}: {tried[0].problem}")
    path = kept(partial(remember, place, best))
    order = {kind: found.order for kind, found in best.items()}
    if as_json:
        rows = [dataclasses.asdict(trial) for trial in tried]
        told = {"device": hardware(place), "file": str(path), "order": order, "trials": rows}
        click.echo(json.dumps(told, indent=2))
        return
    show(table(tried, f"{hardware(place)}: {subject.name}, behind {DEPTH} tokens"))
    for kind, names in order.items():
        click.echo(f"{kind:<5}  auto takes {names[0]}")
    click.echo(f"remembered in {path}")


def table(tried: "Sequence[Trial]", title: str) -> "Table":
    """One line for each backend and kind of weights; the fastest is bold."""
    from rich.text import Text

    made = bench_options.new_table(("weights", "backend"), ("tok/s", "of the fastest"))
    made.title, made.title_justify, made.title_style = title, "left", "bold"
    for trial in tried:
        rates = [t.rate for t in tried if t.kind == trial.kind and t.rate is not None]
        if trial.rate is None:
            made.add_row(trial.kind, trial.backend, "–", trial.problem)
            continue
        share = trial.rate / max(rates)
        cells = (trial.kind, trial.backend, per_second(trial.rate), f"{share:.0%}")
        made.add_row(*(Text(cell, style="bold" if share == 1 else "") for cell in cells))
    return made

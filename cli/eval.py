"""`llama2gpu eval`: how well a model predicts a text, and how quantized or other ones compare."""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llama2gpu.cli import options

if TYPE_CHECKING:
    from llama2gpu.measure.quality import Quality, QualityResult


def read_quants(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> Any:
    """Callback of --quant: each is what `parse_spec` takes, and none is given twice."""
    if not values:
        return values
    from llama2gpu.errors import RequestError
    from llama2gpu.quant.spec import parse_spec

    try:
        for value in values:
            parse_spec(value)
    except RequestError as error:
        raise click.BadParameter(f"{error}.") from None
    return tuple(dict.fromkeys(values))


@click.command()
@click.argument("text")
@options.model
@options.tokenizer
@click.option(
    "--quant",
    "quants",
    multiple=True,
    metavar="SPEC",
    callback=read_quants,
    help="Measure these weights too: int8, int4:32 or int4:128:gptq+zeros+head, say; "
    "may be repeated.",
)
@click.option(
    "--against",
    multiple=True,
    metavar=options.MODEL,
    callback=lambda ctx, param, values: tuple(dict.fromkeys(values)),
    help="Measure this checkpoint too, as it is stored, on the same tokens; it must have the same "
    "vocabulary; may be repeated.",
)
@click.option(
    "--calibrate",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Text to fit gptq and awq to; never the one that is measured.",
)
@options.kv_dtype(" below the first row")
@click.option(
    "--context",
    type=click.IntRange(1),
    help="Tokens of a window.  [default: the model's context, at most 2048]",
)
@click.option(
    "--stride",
    type=click.IntRange(1),
    help="Tokens from one window to the next: windows that overlap score each token once, with "
    "more before it, and take longer.  [default: the window]",
)
@click.option(
    "--tokens",
    type=click.IntRange(1),
    default=20_000,
    show_default=True,
    help="Tokens to predict at most, from the start of TEXT.",
)
@options.backend
@options.op
@options.device
@options.dtype("Type of full precision")
@options.rope_theta
@options.rope_scaling
@options.norm_eps
@options.threads
@options.as_json
@options.quiet
def command(text: str, as_json: bool, quiet: bool, **values: Any) -> None:
    """Measure how well a model predicts TEXT, and what quantization costs.

    TEXT is a UTF-8 file that the model has not seen, or - for standard input; a line <|endoftext|>
    stands between two documents. First is the model in full precision: its perplexity, give or
    take the standard error, and its bits per byte of the text. The other rows of the table say by
    how much perplexity changed, give or take; the mean and the 99th percentile of the KL divergence
    of the next token's distribution from the first row's; how often both find the same token
    likeliest; and the bytes of weights that a decoded token reads. Standard errors are as though
    tokens were independent.
    """
    check_calibration(text, values["quants"], values["calibrate"])
    documents = read(text)

    import torch

    from llama2gpu.api import DEFAULT_MODEL
    from llama2gpu.measure.quality import measure_quality

    if values["threads"]:
        torch.set_num_threads(values["threads"])
    alike = [
        *("against", "tokenizer", "context", "stride", "tokens", "kv_dtype", "backend"),
        *("device", "dtype", "rope_theta", "rope_scaling", "norm_eps"),
    ]
    with stages(quiet) as progress:
        result = measure_quality(
            documents,
            values["quants"],
            model=values["model"] or DEFAULT_MODEL,
            calibration=values["calibrate"],
            ops=dict(values["op"]),
            progress=progress,
            **{name: values[name] for name in alike},
        )
    if not quiet:
        for line in (headline(result), *notes(result)):
            click.echo(line, err=True)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(result), allow_nan=False))
    else:
        show(result)


def check_calibration(text: str, quants: tuple[str, ...], calibrate: Path | None) -> None:
    """Refuses methods without the text that they need, and a text that would judge itself."""
    from llama2gpu.quant.spec import CALIBRATED, parse_spec

    needing = [value for value in quants if parse_spec(value).method in CALIBRATED]
    if calibrate is None and needing:
        raise click.UsageError(f"--quant {needing[0]} needs --calibrate FILE, a text to fit to.")
    if calibrate is not None and not needing:
        raise click.UsageError(f"--calibrate is for --quant with {' or '.join(CALIBRATED)}.")
    if calibrate is not None and text != "-" and calibrate.exists() and calibrate.samefile(text):
        raise click.UsageError("--calibrate is TEXT itself: give another, or the measure is void.")


def read(text: str) -> list[str]:
    """The documents of the file, or of standard input."""
    from llama2gpu.documents import parse_documents, read_documents

    if text != "-":
        return read_documents([Path(text)])
    if sys.stdin is None:
        raise click.UsageError("Standard input is closed.")
    return parse_documents(sys.stdin.buffer.read(), "standard input")


@contextmanager
def stages(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for what is under way, where stderr is a terminal; it vanishes when done."""
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeLeft()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                for task in tasks.values():
                    bar.update(task, visible=False)
                tasks[what] = bar.add_task(what)
            bar.update(tasks[what], completed=done, total=total)

        yield tell


def headline(result: "QualityResult") -> str:
    """What was measured, in one line."""
    r = result
    windows = f"{r.windows:,} window{'s' * (r.windows > 1)} of at most {r.context:,}"
    windows += f" by a stride of {r.stride:,}" if r.stride < r.context else ""
    parts = [r.model, f"{r.tokens:,} tokens in {windows}", f"backend {r.backend}"]
    return " · ".join([*parts, f"dtype {r.dtype}", r.machine["device"]])


def notes(result: "QualityResult") -> Iterator[str]:
    """A line for each row that is not quite what was asked for."""
    for row in result.rows:
        if row.left_dense is not None:
            yield f"{row.name}: {row.left_dense}"
    for name, count in result.other_pieces.items():
        if count:
            yield (
                f"{name}: its own tokenizer reads {count:,} of the ids differently; the text is "
                f"in those of {result.model}"
            )


def show(result: "QualityResult") -> None:
    """The first row in a line, and all as a table, in 100 columns where stdout is no terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from llama2gpu.plan import text_of

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("weights", overflow="fold")
    for name in ("perplexity", "change, %", "KL, nats", "KL 99 %", "top-1, %", "read"):
        table.add_column(name, justify="right", no_wrap=True)
    first, *others = result.rows
    click.echo(summary(result) + "\n")
    table.add_row(first.name, f"{first.perplexity:.4f}", *[""] * 4, text_of(first.weight_bytes))
    for row in others:
        table.add_row(*cells(row))
    Console(width=None if sys.stdout.isatty() else 100, highlight=False).print(table)


def summary(result: "QualityResult") -> str:
    """What the first row says of the text by itself."""
    first = result.rows[0]
    found = f"perplexity {first.perplexity:.4f} ± {first.perplexity_error:.4f}"
    if first.bits_per_byte is not None:
        found += f" · {first.bits_per_byte:.4f} bits per byte of {result.bytes:,}"
    return found


def cells(row: "Quality") -> list[str]:
    """A row that is compared with the first, as text."""
    from llama2gpu.plan import text_of

    return [
        row.name,
        f"{row.perplexity:.4f}",
        f"{row.change:+.2f} ± {row.change_error:.2f}",
        f"{row.divergence:.5f}",
        f"{row.divergence_99:.5f}",
        f"{100 * row.agreement:.2f}",
        text_of(row.weight_bytes),
    ]

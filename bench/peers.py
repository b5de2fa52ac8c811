"""Ours beside other software in one run: `python bench/peers.py --help`."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llama2gpu.cli import bench_options, options
from llama2gpu.cli.kernels_options import choose, split
from llama2gpu.errors import Llama2GPUError
from llama2gpu.measure.kernel_timer import timer_for
from llama2gpu.measure.model_result import PREFILLED
from llama2gpu.measure.peer_kernels import kernel_works, measure_kernels
from llama2gpu.measure.peer_models import measure_models
from llama2gpu.measure.peers import PEERS, Compared, PeerRow
from llama2gpu.measure.results import document, write_results
from llama2gpu.measure.shapes import SHAPES
from llama2gpu.measure.subject import Subject

if TYPE_CHECKING:
    from rich.table import Table


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--shape", type=click.Choice(bench_options.SHAPES),
    help="Random weights of these sizes.  [default: llama-1.1b on a CPU, else llama2-7b]",
)  # fmt: skip
@click.option(
    "--quant", "quants", multiple=True, metavar="SPEC", callback=bench_options.read_quants,
    help="Of whole models: none, int8, int4:32 or int4+head, say; may be repeated.  "
    "[default: none]",
)  # fmt: skip
@click.option(
    "--dtype", type=click.Choice(["auto", "fp32", "fp16", "bf16"]), default="auto",
    show_default=True, help="Of weights and activations; auto is bf16 where the device has it.",
)  # fmt: skip
@options.backend
@options.device
@options.threads
@click.option(
    "--depth", type=click.IntRange(1, PREFILLED), default=128, show_default=True,
    help="Tokens of the prompt of whole models, and in the cache of single ops.",
)  # fmt: skip
@click.option(
    "--tokens", type=click.IntRange(1), default=32, show_default=True,
    help="Tokens that whole models generate.",
)  # fmt: skip
@bench_options.batches
@click.option(
    "--repeats", type=click.IntRange(1), default=5, show_default=True,
    help="Rounds; the order of all who take part changes from one to the next.",
)  # fmt: skip
@click.option(
    "--only", "names", default="all", show_default=True, metavar="NAMES", callback=split,
    help=f"Of {', '.join(PEERS)}, with commas between.",
)  # fmt: skip
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
    help="Write the rounds to this file.",
)  # fmt: skip
@options.as_json
@options.quiet
@click.pass_context
def main(
    ctx: click.Context, shape: str | None, quants: tuple[str, ...], dtype: str, backend: str,
    device: str, threads: int | None, depth: int, tokens: int, batches: list[int], repeats: int,
    names: list[str], output: Path | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Measure ours and other software in turns, on the same shape and machine.

    Whole models generate behind one prompt: transformers on the same weights (quantized ones are
    dequantized for it), once with its growing cache and once compiled on a static one; and
    llama.cpp by `llama-bench`, where that is on PATH, with the file type that comes nearest. Single
    ops are of int4 matrices and of none, with --batch tokens at once: a peer does the product alone
    where ours is fused with more. Every result is checked before it is timed, but llama.cpp's. A
    ratio is ours divided by theirs, round by round: the median, and the quartiles. What is missing
    is named with the reason; the exit status is 1 where a result is wrong.
    """
    try:
        bench_options.check_output(output)
        chosen, found = choose("peer", names, PEERS), Compared()
        subject = subject_of(shape, dtype, backend, device, threads)
        todo: list[Callable[[], Compared]] = []
        told: Callable[[str], None] = quietly if quiet else tell
        if any(PEERS[name].measures == "models" for name in chosen):
            for quant in quants:
                one = Subject(**{**vars(subject), "quant": quant})
                todo.append(partial(measure_models, one, depth, tokens, repeats, chosen, told=told))
        if any(PEERS[name].measures == "kernels" for name in chosen):
            todo.append(partial(kernels, subject, depth, batches, repeats, chosen, told=told))
        for work in todo:
            found.add(bench_options.apart(work))
            if output is not None:  # after each: another may fail
                write_results(output, found.rows, **missing(found))
    except Llama2GPUError as error:
        raise click.ClickException(" ".join(str(error).split())) from error
    except MemoryError as error:
        raise click.ClickException("out of memory: take a smaller shape") from error
    report(found, as_json, quiet)
    ctx.exit(1 if found.wrong else 0)


def subject_of(
    shape: str | None, dtype: str, backend: str, device: str, threads: int | None
) -> Subject:
    """What the options name, dense."""
    from llama2gpu.backends import resolve_device

    on_cpu = backend == "numpy" or resolve_device(device).type == "cpu"
    name = shape or ("llama-1.1b" if on_cpu else "llama2-7b")
    return Subject(name, backend, "cpu" if on_cpu else device, dtype, threads=threads)


def kernels(
    subject: Subject,
    depth: int,
    batches: list[int],
    repeats: int,
    names: list[str],
    told: Callable[[str], None],
) -> Compared:
    """Single ops of the subject's shape on its backend."""
    import torch

    from llama2gpu.backends import choose_backend

    if subject.threads is not None:
        torch.set_num_threads(subject.threads)
    backend = choose_backend(subject.backend, subject.device)
    kind = backend.activation_dtype(subject.random(backend.device).dtype)
    todo = kernel_works(SHAPES[subject.model], names, batches, depth)
    timer = timer_for(backend.device)
    return measure_kernels(subject.model, todo, backend, kind, names, timer, repeats, told=told)


def tell(what: str) -> None:
    """A line on stderr for each thing that is begun."""
    click.echo(f"measuring {what}", err=True)


def quietly(what: str) -> None:
    """Nothing."""


def missing(found: Compared) -> dict[str, dict[str, str]]:
    """Who has no figures, and why."""
    return {"absent": found.absent, "wrong": found.wrong}


def report(found: Compared, as_json: bool, quiet: bool) -> None:
    """Tables, or one JSON object, on stdout; who is missing is in both."""
    if as_json:
        click.echo(json.dumps(document(found.rows, **missing(found)), allow_nan=False))
        return
    for table in tables(found.rows):
        bench_options.show(table)
        click.echo()
    for what, reasons in missing(found).items():
        for name, reason in reasons.items():
            click.echo(f"{what}: {name}: {reason}")
    if not quiet:
        place = {name: x for row in found.rows for name, x in row.machine.items()}
        click.echo(" · ".join(f"{name} {x}" for name, x in place.items()), err=True)


def tables(rows: list[PeerRow]) -> "Iterator[Table]":
    """One of whole models and one of single ops, of what there is."""
    models = [row for row in rows if row.bench == "peers"]
    if models:
        made = bench_options.new_table(
            ("model", "who", "weights"), ("decode tok/s", "ours ÷", "prefill tok/s", "ours ÷")
        )
        for row in models:
            form = row.dtype if row.quant == "none" else row.quant
            made.add_row(row.model, row.backend, form, *speeds(row))
        yield made
    if len(models) < len(rows):
        made = bench_options.new_table(("op", "weight"), ("tokens", "n × k"))
        made.add_column("who", no_wrap=True)
        for heading in ("µs", "ours ÷"):
            made.add_column(heading, justify="right", no_wrap=True)
        for row in rows:
            if row.bench != "peers":
                size = f"{row.n}×{row.k}" if row.k else str(row.n)
                made.add_row(
                    row.bench, row.quant, str(row.tokens), size, row.backend,
                    f"{row.median('us'):.1f}", share(row, "us"),
                )  # fmt: skip
        yield made


def speeds(row: PeerRow) -> list[str]:
    """Rates of a whole model with the ratios to them."""
    digits = {"decode_rate": 2, "prefill_rate": 0}
    return [
        cell
        for figure, places in digits.items()
        for cell in (f"{row.median(figure):,.{places}f}", share(row, figure))
    ]


def share(row: PeerRow, figure: str) -> str:
    """The ratio of ours to it, with the quartiles of the rounds; nothing of ours itself."""
    if figure not in row.ratios:
        return ""
    found = row.ratios[figure]
    return f"{found.median:.2f} ({found.low:.2f}–{found.high:.2f})"


if __name__ == "__main__":
    main()

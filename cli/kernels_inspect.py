"""`llama2gpu kernels list` and `inspect`: what kernels there are, and what they compile to."""

import json
from typing import TYPE_CHECKING

import click

from llama2gpu.cli import options
from llama2gpu.cli.kernels_options import (
    choose,
    context,
    counting,
    ops,
    shape,
    short,
    show,
    split,
    tokens,
    weights,
    works,
)

if TYPE_CHECKING:
    from rich.table import Table

    from llama2gpu.measure.kernels import Row

#: What is told of a kernel's variant behind its name.
KINDS = {"no-denormals": " (converts)", "cuda-c": ".cu"}


@click.command("list")
@shape
@ops
@weights
@tokens
@context
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of objects.")
def list_command(
    shape: str, ops: list[str], weights: list[str], tokens: list[int], context: int, as_json: bool
) -> None:
    """Say which kernels each op launches."""
    from llama2gpu.measure.kernels import list_kernels

    found = list_kernels(works(shape, ops, weights, tokens, context))
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    lines, last = [], ""
    for row in found:
        numbers = ",".join(map(str, row["tokens"]))
        op, last = "" if row["op"] == last else row["op"], row["op"]
        lines.append((op, short(row["kernel"]), ",".join(row["weights"]), numbers, row["summary"]))
    for i, heading in enumerate(("op", "kernel", "weight", "tokens", "what it does")):
        width = max([len(heading), *(len(line[i]) for line in lines)])
        table.add_column(
            heading, no_wrap=True, overflow="ellipsis", min_width=width if i < 4 else None
        )
    for line in lines:
        table.add_row(*map(Text, line))
    show(table)


@click.command("inspect")
@click.option(
    "--arch", "archs", default="sm_90", show_default=True, metavar="NAMES", callback=split,
    help="Architectures, with commas between, or all.",
)  # fmt: skip
@shape
@ops
@weights
@tokens
@context
@click.option(
    "--backend", "backends", default="all", show_default=True, metavar="NAMES", callback=split,
    help="triton, or cupy, whose CUDA C is compiled where NVRTC is installed.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of objects.")
@options.quiet
def inspect_command(
    archs: list[str], shape: str, ops: list[str], weights: list[str], tokens: list[int],
    context: int, backends: list[str], as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Compile kernels for architectures, and show what they are made of.

    m, n, k: tokens, and the matrix's rows and columns. regs: registers of a lane, + bytes spilled.
    shared: bytes of shared memory. warps: that fit on a multiprocessor. load: bits of the narrowest
    load of the matrix or cache. bar: barriers in the hot loop. instr: instructions of a lane for
    each weight in the hot loop; with a star, in a whole kernel that has no loop. bound: the share
    of the card's bandwidth that issuing so many instructions permits.
    """
    from llama2gpu.kernels.arch import EVERY_ARCH
    from llama2gpu.measure.kernels import Job, inspect_all, variants_for

    names = choose("architecture", archs, EVERY_ARCH)
    todo = works(shape, ops, weights, tokens, context)
    asked = known_backends(backends, quiet)
    ways = {name: variants_for(name, asked) for name in names}
    jobs = [Job(w, name, variant) for name in names for w in todo for variant in ways[name]]
    with counting(quiet, "compiling") as told:
        rows = list(inspect_all(jobs, told))
    if as_json:
        click.echo(json.dumps([row.fields() for row in rows], indent=2))
        return
    for name in names:
        click.echo()
        show(table([row for row in rows if row.arch == name], name))


def known_backends(asked: list[str], quiet: bool) -> list[str]:
    """The backends to inspect: of all, those whose compiler is installed."""
    from llama2gpu.kernels.cuda_compile import missing_compiler

    chosen = choose("backend", asked, ("triton", "cupy"))
    wanting = missing_compiler() if asked == ["all"] else ""
    if wanting and not quiet:
        click.echo(f"llama2gpu: without the CUDA C kernels: {wanting}", err=True)
    return [name for name in chosen if not (wanting and name == "cupy")]


def table(rows: list["Row"], arch: str) -> "Table":
    """The kernels of one architecture; the bound is that of its first card."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from llama2gpu.measure.cards import CARDS

    card = next(card.name for card in CARDS if card.arch == arch)
    limit = f", {rows[0].binary.shared_limit >> 10} KiB of shared memory" if rows else ""
    made = Table(
        title=f"{arch}{limit}; bound: share of the bandwidth of {card}", title_style="bold",
        title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0),
        header_style="dim",
    )  # fmt: skip
    made.add_column("op", no_wrap=True)
    for heading in ("m", "weight", "n × k"):
        made.add_column(heading, justify="left" if heading == "weight" else "right", no_wrap=True)
    for heading in ("regs", "shared", "warps", "load", "bar", "matrix", "instr", "bound"):
        made.add_column(heading, justify="right", no_wrap=True)
    op, seen = "", set[tuple[object, ...]]()
    for row in rows:
        name, *values = cells(row, card)
        kind = row.variant == "cuda-c"
        if (row.op, name, kind, *values) in seen:
            continue  # in another case or variant the same kernel, compiled for the same
        seen.add((row.op, name, kind, *values))
        if op != row.op:
            made.add_row(Text(row.op, style="bold"))
        op = row.op
        made.add_row(Text(f"  {name}{KINDS.get(row.variant, '')}"), *map(Text.from_markup, values))
    return made


def cells(row: "Row", card: str) -> list[str]:
    """What a row of the table says from the kernel's name on; what costs speed is red."""
    b = row.binary
    streams = row.instr_per_weight is not None
    star = "" if b.has_loop else "*"
    return [
        short(row.kernel),
        str(row.m),
        row.weight,
        str(row.n) if row.k is None else f"{row.n}×{row.k}",
        red(f"{b.registers}+{b.spill_bytes}" if b.spill_bytes else b.registers, b.spill_bytes > 0),
        red(size(b.shared_bytes), b.shared_bytes > b.shared_limit),
        str(b.warps_per_sm),
        red(b.load_bits, streams and b.load_bits < 128),
        red(b.barriers_in_loop, streams and b.barriers_in_loop > 0 and not b.matrix_op),
        b.matrix_op,
        "" if row.instr_per_weight is None else f"{row.instr_per_weight:.2f}{star}",
        f"{row.bandwidth_bound[card]:.0%}" if card in row.bandwidth_bound else "",
    ]


def size(count: int) -> str:
    """Bytes, or KiB from the first one on."""
    return str(count) if count < 1024 else f"{count / 1024:.3g}K"


def red(value: object, wrong: bool) -> str:
    """A cell, marked where something is wrong with it."""
    return f"[bold red]{value}[/]" if wrong else str(value)

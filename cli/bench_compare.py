"""`llama2gpu bench compare`: whether a run became slower, for people and for CI."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llama2gpu.cli import bench_options, options

if TYPE_CHECKING:
    from rich.table import Table

    from llama2gpu.measure.compare import Comparison

FILE = click.Path(path_type=Path)


@click.command("compare")
@click.argument("old", type=FILE)
@click.argument("new", type=FILE)
@click.option(
    "--threshold", type=click.FloatRange(0, 100), default=5.0, show_default=True, metavar="PERCENT",
    callback=options.finite, help="Speed that a row may lose.",
)  # fmt: skip
@options.as_json
@options.quiet
@click.pass_context
def command(
    ctx: click.Context, old: Path, new: Path, threshold: float, as_json: bool, quiet: bool
) -> None:
    """Compare two runs; exit with status 1 where one became slower.

    OLD and NEW are files that `bench decode`, `prefill`, `load` or `kernels` wrote with --output.
    Slower means by more than the threshold, and by more than the noise: the standard deviations of
    both runs, joined. The status is 2 where the files can't be compared.
    """
    from llama2gpu.cli.main import NAME, one_line
    from llama2gpu.errors import ResultsError
    from llama2gpu.measure.compare import compare

    try:
        found = compare(old, new, threshold / 100)
    except ResultsError as error:
        click.echo(f"{NAME}: error: {one_line(error)}", err=True)
        ctx.exit(2)
    if as_json:
        click.echo(json.dumps(asdict(found), allow_nan=False))
    else:
        bench_options.show(table(found))
    if not quiet:
        for path, names in ((old, found.only_old), (new, found.only_new)):
            for name in names:
                click.echo(f"only in {path}: {name}", err=True)
        slower = f"{len(found.slower)} of {len(found.changes)} figures are slower"
        click.echo(f"{slower} by more than {threshold:g} % and the noise", err=True)
    ctx.exit(1 if found.slower else 0)


def table(found: "Comparison") -> "Table":
    """The figures, a line each; a speed below 1 is slower."""
    made = bench_options.new_table(
        ("row", "figure"), ("old", "new", "speed", "noise", "read peak", "")
    )
    for change in found.changes:
        made.add_row(
            change.name,
            change.figure.replace("_", " "),
            f"{change.old:.4g}",
            f"{change.new:.4g}",
            f"{change.speed:.3f}",
            f"±{change.noise:.1%}",
            bench_options.figure(change.peak, ".2f"),
            "slower" if change.slower else "",
        )
    return made

"""`llama2gpu bench load`: seconds and memory until the weights are ready."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llama2gpu.cli import bench_options
from llama2gpu.cli.bench_decode import form, memory
from llama2gpu.cli.bench_options import figure, plus_minus

if TYPE_CHECKING:
    from rich.table import Table

    from llama2gpu.measure.load import LoadResult
    from llama2gpu.measure.subject import Subject


@click.command("load")
@bench_options.subjects
@click.option(
    "--cold", is_flag=True, help="Drop the files from the system's cache before each time (Linux)."
)
def command(cold: bool, **values: Any) -> None:
    """Measure how fast a checkpoint is loaded.

    Every round also reads the same files and does nothing with them. The weights of a shape are
    written to a temporary folder first, quantized ones as such. The peak of memory is of the first
    load, in a process of its own.
    """
    from llama2gpu.measure.load import measure_load

    results: list[LoadResult] = []
    subjects = bench_options.chosen(values)
    for number, subject in enumerate(subjects, 1):
        bench_options.told(values["quiet"], number, len(subjects), subject.title)
        with stored(subject) as folder:
            work = partial(measure_load, subject, values["repeats"], folder=folder, cold=cold)
            results.append(bench_options.apart(work))
            bench_options.keep(results, values)
    bench_options.finish(results, values, table)


@contextmanager
def stored(subject: "Subject") -> Iterator[Path | None]:
    """The folder of a shape, which lasts as long as the block; None for a checkpoint."""
    if not subject.is_shape:
        yield None
        return
    from tempfile import TemporaryDirectory

    from llama2gpu.measure.load import write_shape

    with TemporaryDirectory(prefix="llama2gpu-") as place:
        folder = Path(place) / subject.name
        bench_options.apart(partial(write_shape, subject, folder))
        yield folder


def table(results: "Sequence[LoadResult]") -> "Table":
    """The results, a line each."""
    made = bench_options.new_table(
        ("model", "weights"),
        ("files", "load s", "read s", "load / read", "memory", "/ weights"),
    )
    for r in results:
        made.add_row(
            r.model,
            form(r),
            memory(r.file_bytes),
            plus_minus(*r.mean("load_seconds"), 3),
            plus_minus(*r.mean("read_seconds"), 3),
            f"{r.read_ratio:.1f}",
            memory(r.memory_bytes),
            figure(r.memory_ratio, ".2f"),
        )
    return made

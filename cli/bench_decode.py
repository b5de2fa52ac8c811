"""`llama2gpu bench decode`: tokens a second of a whole model that generates."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llama2gpu.cli import bench_options
from llama2gpu.cli.bench_options import plus_minus

if TYPE_CHECKING:
    from rich.table import Table

    from llama2gpu.measure.decode import Peer
    from llama2gpu.measure.model_result import ModelResult
    from llama2gpu.measure.subject import Subject


@click.command("decode")
@bench_options.subjects
@bench_options.depths("128")
@bench_options.batches
@click.option(
    "--tokens", type=click.IntRange(1), default=32, show_default=True,
    help="Tokens that each sequence generates.",
)  # fmt: skip
@click.option(
    "--llama-bench", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
    help="This program of llama.cpp beside it, on the same shape, in every round.",
)  # fmt: skip
@bench_options.profile
def command(
    depths: list[int],
    batches: list[int],
    tokens: int,
    llama_bench: Path | None,
    profile: Path | None,
    **values: Any,
) -> None:
    """Measure how fast a model generates.

    Every round also measures how fast the device reads the same weights (a GPU: other memory) and
    multiplies matrices, and shares are of these peaks. A cache of up to 512 tokens in all is filled
    by prefilling them, whose rate is told beside; a larger one with random keys and values.
    """
    from llama2gpu.measure.decode import measure
    from llama2gpu.measure.model_result import PREFILLED, Case

    cases = [Case("decode", depth, batch, tokens) for depth, batch in product(depths, batches)]
    subjects = bench_options.chosen(values)
    bench_options.check_profile(profile, len(cases) * len(subjects))
    if llama_bench is not None:
        check_peer(subjects, depths, batches, PREFILLED)
    results: list[ModelResult] = []
    for number, subject in enumerate(subjects, 1):
        bench_options.told(values["quiet"], number, len(subjects), subject.title)
        with peer(llama_bench, subject, depths[0], tokens) as other:
            work = partial(measure, subject, cases, values["repeats"], peer=other, profile=profile)
            results += bench_options.apart(work)
            bench_options.keep(results, values)
    bench_options.finish(results, values, table)
    bench_options.wrote(profile, values["quiet"])


def check_peer(subjects: "list[Subject]", depths: list[int], batches: list[int], most: int) -> None:
    """llama.cpp is measured on shapes, with one sequence and one depth, behind a prompt."""
    if not all(subject.is_shape for subject in subjects):
        raise click.UsageError("--llama-bench needs --shape: it takes random weights too.")
    if batches != [1] or len(depths) > 1 or not 1 <= depths[0] <= most:
        raise click.UsageError(f"--llama-bench needs --batch 1 and one --depth of 1 to {most}.")


@contextmanager
def peer(
    program: Path | None, subject: "Subject", depth: int, tokens: int
) -> "Iterator[Peer | None]":
    """llama.cpp on a file of that shape, which lasts as long as the block."""
    if program is None:
        yield None
        return
    from llama2gpu.measure.llama_cpp import llama_bench

    with llama_bench(program, subject, depth, tokens) as (kind, rates):
        yield f"llama.cpp {kind}", rates


def table(results: "Sequence[ModelResult]") -> "Table":
    """The results, a line each."""
    beside = any(r.peer for r in results)
    made = bench_options.new_table(
        ("model", "weights"),
        (
            *("depth", "batch", "tok/s", "GB/s", "of peak", "prefill tok/s", "of peak", "memory"),
            *(("beside", "decode", "prefill") if beside else ()),
        ),
    )
    for r in results:
        prefilled = bool(r.values("prefill_rate"))
        rate, deviation = r.mean("decode_rate")
        cells = [
            r.model,
            form(r),
            str(r.depth),
            str(r.batch),
            plus_minus(rate, deviation, 1),
            f"{r.median('decode_rate') / r.batch * r.step_bytes / 1e9:.1f}",
            f"{r.read_share:.0%}",
            plus_minus(*r.mean("prefill_rate"), 0) if prefilled else "–",
            f"{r.matmul_share:.0%}" if prefilled else "–",
            memory(r.memory_bytes),
        ]
        if beside:
            cells += [r.peer, *(f"{r.peer_share(x):.2f}×" for x in ("decode_rate", "prefill_rate"))]
        made.add_row(*cells)
    return made


def form(result: Any) -> str:
    """The backend, and the type or quantization of the weights."""
    kind = result.dtype if result.quant == "none" else result.quant
    return f"{result.backend} {kind}"


def memory(count: int | None) -> str:
    """Bytes in the largest unit of which there is one; a dash where nothing tells."""
    if count is None:
        return "–"
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.{2 if unit == 'GiB' else 0}f} {unit}"
    return f"{count / 2**10:.0f} KiB"

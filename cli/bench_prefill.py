"""`llama2gpu bench prefill`: time to the first token, and what it is made of."""

from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llama2gpu.cli import bench_options
from llama2gpu.cli.bench_decode import form, memory
from llama2gpu.cli.bench_options import figure, numbers, plus_minus

if TYPE_CHECKING:
    from rich.table import Table

    from llama2gpu.measure.model_result import ModelResult


@click.command("prefill")
@bench_options.subjects
@click.option(
    "--tokens", default="128", show_default=True, metavar="NUMBERS", callback=numbers(1, 1 << 20),
    help="Tokens of the prompt.",
)  # fmt: skip
@bench_options.depths("0")
@bench_options.batches
@bench_options.profile
def command(
    tokens: list[int],
    depths: list[int],
    batches: list[int],
    profile: Path | None,
    **values: Any,
) -> None:
    """Measure how fast a model takes a prompt.

    The time to the first token of a fresh process is told in its parts: loading the weights; what
    the first prefill takes longer than later ones, such as compiling kernels; and the prefill. With
    --depth so many random keys and values are cached before the prompt.
    """
    from llama2gpu.measure.decode import measure
    from llama2gpu.measure.model_result import Case

    cases = [Case("prefill", *sizes) for sizes in product(depths, batches, tokens)]
    subjects = bench_options.chosen(values)
    bench_options.check_profile(profile, len(cases) * len(subjects))
    results: list[ModelResult] = []
    for number, subject in enumerate(subjects, 1):
        bench_options.told(values["quiet"], number, len(subjects), subject.title)
        work = partial(measure, subject, cases, values["repeats"], profile=profile)
        results += bench_options.apart(work)
        bench_options.keep(results, values)
    bench_options.finish(results, values, table)
    bench_options.wrote(profile, values["quiet"])


def table(results: "Sequence[ModelResult]") -> "Table":
    """The results, a line each."""
    made = bench_options.new_table(
        ("model", "weights"),
        (
            *("depth", "batch", "tokens", "tok/s", "TFLOP/s", "of peak"),
            *("load s", "compile s", "prefill s", "memory"),
        ),
    )
    for r in results:
        rate, deviation = r.mean("prefill_rate")
        made.add_row(
            r.model,
            form(r),
            str(r.depth),
            str(r.batch),
            str(r.tokens),
            plus_minus(rate, deviation, 0),
            f"{r.median('prefill_rate') * r.prompt_flops / 1e12:.3g}",
            f"{r.matmul_share:.0%}",
            figure(r.load_seconds, ".2f"),
            figure(r.compile_seconds, ".3f"),
            f"{r.prefill_seconds:.3f}",
            memory(r.memory_bytes),
        )
    return made

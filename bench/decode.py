"""Prefill and decode of a named shape with random weights: `python bench/decode.py --help`."""

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from llama2gpu.measure.decode import DecodeResult, measure_decode
from llama2gpu.measure.shapes import SHAPES


@click.command()
@click.option("--shape", "shapes", multiple=True, type=click.Choice(list(SHAPES)), required=True)
@click.option("--backend", default="auto", show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option(
    "--dtype", "dtypes", multiple=True, type=click.Choice(["auto", "fp32", "fp16", "bf16"])
)
@click.option("--prompt", type=click.IntRange(1), default=128, show_default=True)
@click.option("--tokens", type=click.IntRange(1), default=32, show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option("--json", "output", type=click.Path(path_type=Path), help="Also write to this file.")
def main(
    shapes: tuple[str, ...],
    backend: str,
    device: str,
    dtypes: tuple[str, ...],
    prompt: int,
    tokens: int,
    repeats: int,
    output: Path | None,
) -> None:
    """Measure whole models; several shapes and types make several rows."""
    results = []
    for shape, dtype in product(shapes, dtypes or ("auto",)):
        work = partial(measure_decode, shape, backend=backend, device=device, dtype=dtype)
        work = partial(work, prompt=prompt, tokens=tokens, repeats=repeats)
        results.append(apart(work))
    show(results)
    if output is not None:
        output.write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")


def apart(work: Callable[[], DecodeResult]) -> DecodeResult:
    """The result of work that is done in a process of its own, with memory of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(work).result()


def show(results: list[DecodeResult]) -> None:
    """The results on stdout, a column each."""
    first = results[0]
    table = Table(title=" · ".join(first.machine.values()), title_justify="left")
    table.add_column()
    for r in results:
        table.add_column(f"{r.shape}\n{r.backend}, {r.dtype}", justify="right")
    rows = {
        f"prefill of {first.prompt}, tok/s": [f"{r.median('prefill_rate'):.1f}" for r in results],
        "  share of the matmul peak": [f"{r.matmul_share:.0%}" for r in results],
        "  matmul peak, TFLOP/s": [f"{r.median('matmul_peak') / 1e12:.2f}" for r in results],
        f"decode of {first.tokens}, tok/s": [f"{r.median('decode_rate'):.2f}" for r in results],
        "  weights read, GB/s": [
            f"{r.median('decode_rate') * r.weight_bytes / 1e9:.1f}" for r in results
        ],
        "  share of the read peak": [f"{r.read_share:.0%}" for r in results],
        "  read peak, GB/s": [f"{r.median('read_peak') / 1e9:.1f}" for r in results],
        "memory / weights": [f"{r.memory_ratio:.2f}" for r in results],
    }
    for name, cells in rows.items():
        table.add_row(name, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()

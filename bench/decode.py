"""Prefill and decode of a named shape with random weights: `python bench/decode.py --help`."""

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from rich.console import Console
from rich.table import Table

from llama2gpu.measure.decode import DecodeResult, measure_decode
from llama2gpu.measure.llama_cpp import FILE_TYPES, LlamaBench, file_type, write_gguf
from llama2gpu.measure.shapes import SHAPES


@click.command()
@click.option("--shape", "shapes", multiple=True, type=click.Choice(list(SHAPES)), required=True)
@click.option("--backend", default="auto", show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option(
    "--dtype", "dtypes", multiple=True, type=click.Choice(["auto", "fp32", "fp16", "bf16"])
)
@click.option("--quant", "quants", multiple=True, metavar="SPEC", help="none, int8, int4+head, …")
@click.option("--prompt", type=click.IntRange(1), default=128, show_default=True)
@click.option("--tokens", type=click.IntRange(1), default=32, show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option(
    "--llama-bench",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="This program of llama.cpp beside it, on the same shape, in every round.",
)
@click.option("--json", "output", type=click.Path(path_type=Path), help="Also write to this file.")
def main(
    shapes: tuple[str, ...],
    dtypes: tuple[str, ...],
    quants: tuple[str, ...],
    prompt: int,
    tokens: int,
    repeats: int,
    llama_bench: Path | None,
    output: Path | None,
    backend: str,
    device: str,
) -> None:
    """Measure whole models; several shapes, types and quantizations make several columns."""
    results = []
    for shape, dtype, quant in product(shapes, dtypes or ("auto",), quants or ("none",)):
        work = partial(measure_decode, shape, backend=backend, device=device, dtype=dtype)
        work = partial(work, quant=quant, prompt=prompt, tokens=tokens, repeats=repeats)
        with peer(llama_bench, shape, dtype, quant, prompt, tokens) as other:
            results.append(apart(partial(work, peer=other)))
    show(results)
    if output is not None:
        output.write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")


@contextmanager
def peer(
    program: Path | None, shape: str, dtype: str, quant: str, prompt: int, tokens: int
) -> Iterator[tuple[str, LlamaBench] | None]:
    """llama.cpp on a file of that shape, which lasts as long as the block."""
    if program is None:
        yield None
        return
    kind = file_type(dtype, quant)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_gguf(path, SHAPES[shape], kind)
        threads = len(os.sched_getaffinity(0))
        yield f"llama.cpp {FILE_TYPES[kind]}", LlamaBench(program, path, prompt, tokens, threads)


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
        form = r.dtype if r.quant == "none" else r.quant
        table.add_column(f"{r.shape}\n{r.backend}, {form}", justify="right")
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
    if first.peer:
        rows["beside"] = [r.peer for r in results]
        for name, field in (("prefill", "prefill_rate"), ("decode", "decode_rate")):
            rows[f"  its {name}, tok/s"] = [f"{r.median('peer_' + field):.1f}" for r in results]
            rows[f"  {name}, times its"] = [f"{r.peer_share(field):.2f}" for r in results]
    for name, cells in rows.items():
        table.add_row(name, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()

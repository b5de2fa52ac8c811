"""Training throughput of the shipped shape, on random tokens: `python bench/training.py --help`."""

import json
import statistics
import time
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from llama2gpu.backends.choose import resolve_device
from llama2gpu.config import Config
from llama2gpu.measure.decode import machine
from llama2gpu.measure.limits import matmul_peak
from llama2gpu.training.data import Corpus
from llama2gpu.training.loop import Settings, Trainer, training_dtype
from llama2gpu.training.net import Net
from llama2gpu.training.plan import Shape

VOCAB = 2048


@dataclass(frozen=True)
class Result:
    """Median rates of a batch of windows; a share is that of one round, to the peak of its own."""

    context: int
    batch: int
    dtype: str
    tokens_per_second: float
    flops_per_token: float
    matmul_peak: float
    share: float
    machine: dict[str, str]


@click.command()
@click.option("--context", "contexts", multiple=True, type=click.IntRange(2), default=(512, 256))
@click.option("--batch", "batches", multiple=True, type=click.IntRange(1), default=(2, 4, 8))
@click.option("--dtype", type=click.Choice(["auto", "fp32", "bf16"]), default="auto")
@click.option("--device", default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="CPU threads to compute with.")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option("--json", "output", type=click.Path(path_type=Path), help="Also write to this file.")
def main(
    contexts: tuple[int, ...],
    batches: tuple[int, ...],
    dtype: str,
    device: str,
    threads: int | None,
    repeats: int,
    output: Path | None,
) -> None:
    """Measure whole training steps: forward, backward, clipping and AdamW."""
    if threads:
        torch.set_num_threads(threads)
    place = resolve_device(device)
    named = {"auto": training_dtype(place), "fp32": torch.float32, "bf16": torch.bfloat16}
    results = [
        measure(context, batch, named[dtype], place, repeats)
        for context, batch in product(contexts, batches)
    ]
    show(results)
    if output is not None:
        output.write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")


def measure(
    context: int, batch: int, dtype: torch.dtype, device: torch.device, repeats: int
) -> Result:
    """Rounds of the matmul peak and then one step, after a step that warms up."""
    config = Shape().config(VOCAB, context)
    settings = Settings(
        steps=repeats + 1, batch=batch, accumulate=1, lr=1e-3, warmup=0, seed=0,
        eval_every=repeats + 2, dtype=dtype,
    )  # fmt: skip
    stream = np.random.default_rng(0).integers(VOCAB, size=1 << 20).astype(np.uint16)
    net = Net(config, context, torch.Generator().manual_seed(0)).to(device)
    trainer = Trainer(net, Corpus(stream, stream[: context + 1], context), settings)
    rates, peaks = [], []
    for step in range(repeats + 1):
        peaks.append(matmul_peak(device, dtype, repeats=3))
        began = time.perf_counter()
        trainer.step(step + 1)
        rates.append(batch * context / (time.perf_counter() - began))
    flops = flops_per_token(config, context)
    return Result(
        context=context,
        batch=batch,
        dtype=str(dtype).removeprefix("torch."),
        tokens_per_second=statistics.median(rates[1:]),
        flops_per_token=flops,
        matmul_peak=statistics.median(peaks[1:]),
        share=statistics.median(
            rate * flops / peak for rate, peak in zip(rates[1:], peaks[1:], strict=True)
        ),
        machine=machine(device),
    )


def flops_per_token(config: Config, context: int) -> float:
    """Forward and backward: 6 a matrix weight, the tied head's once, and causal attention's."""
    norms = (2 * config.layers + 1) * config.dim
    attention = 12 * config.layers * config.q_rows * context / 2
    return 6 * (config.parameters - norms) + attention


def show(results: list[Result]) -> None:
    """The results on stdout, a row each."""
    table = Table(title=" · ".join(results[0].machine.values()), title_justify="left")
    for column in ("context", "batch", "dtype", "tok/s", "GFLOP/s", "matmul peak", "share"):
        table.add_column(column, justify="right")
    for r in results:
        table.add_row(
            str(r.context),
            str(r.batch),
            r.dtype,
            f"{r.tokens_per_second:,.0f}",
            f"{r.tokens_per_second * r.flops_per_token / 1e9:.1f}",
            f"{r.matmul_peak / 1e9:.1f}",
            f"{r.share:.0%}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()

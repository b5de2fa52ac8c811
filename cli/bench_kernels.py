"""`llama2gpu bench kernels`: each op's time, as a share of what the device can do at best."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llama2gpu.cli import bench_options, options
from llama2gpu.cli.bench_kernels_table import as_lines, table
from llama2gpu.cli.kernels_options import (
    choose,
    context,
    counting,
    ops,
    shape,
    show,
    split,
    split_numbers,
)

if TYPE_CHECKING:
    import torch

    from llama2gpu.backends.base import Backend
    from llama2gpu.measure.kernel_bench import KernelBench, Row
    from llama2gpu.measure.kernel_work import Work

#: Names of --quant → kinds of weight.
QUANTS = {"none": "dense", "int8": "int8", "int4": "int4"}


def plot_path(ctx: click.Context, param: click.Parameter, values: tuple[Path, ...]) -> Any:
    """Callback of --plot: files whose names say svg or png."""
    for path in values:
        if path.suffix.lower() not in (".svg", ".png"):
            raise click.BadParameter(f"{path.name!r} does not end in .svg or .png.")
    return values


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@shape
@ops
@click.option(
    "--tokens", default="1,4,16,64,512", show_default=True, metavar="NUMBERS",
    callback=split_numbers, help="New tokens: up to 64 of as many sequences, else of one prompt.",
)  # fmt: skip
@context
@click.option(
    "--quant", "quants", default="all", show_default=True, metavar="KINDS", callback=split,
    help="Of none, int8 and int4: weights, or the cache where an op reads that.",
)  # fmt: skip
@click.option(
    "--dtype", type=click.Choice(["auto", "fp32", "fp16", "bf16"]), default="auto",
    show_default=True, help="Of activations and weights; auto is bf16 where the device has it.",
)  # fmt: skip
@click.option(
    "--backend", "backends", default="auto", show_default=True, metavar="NAMES", callback=split,
    help="Backends with commas between; auto is what `run` takes, all is every one that runs.",
)  # fmt: skip
@options.device
@options.threads
@bench_options.output
@options.as_json
@click.option("--csv", "as_csv", is_flag=True, help="Print rows with commas between.")
@click.option(
    "--plot", "plots", multiple=True, metavar="FILE", callback=plot_path,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw a roofline into a .svg or .png file (needs matplotlib); may be repeated.",
)  # fmt: skip
@options.quiet
@click.pass_context
def command(
    ctx: click.Context, shape: str, ops: list[str], tokens: list[int], context: int,
    quants: list[str], dtype: str, backends: list[str], device: str, threads: int | None,
    output: Path | None, as_json: bool, as_csv: bool, plots: tuple[Path, ...], quiet: bool,
) -> None:  # fmt: skip
    """Time the ops of each backend beside PyTorch's own and the device's roofs.

    Each result is checked against the reference first; one that is wrong has no figures, and the
    exit status is 1. Weights and caches take turns, so that they come from memory; what is too
    small for that has no share. Bytes are the least that an op must move. The share is the least
    time under the roofs (copying, reading, multiplying: the higher of right before and right
    after, or of more where the op is above them) divided by the time. The ratio is the time of
    PyTorch's fastest way, for a fused op that of its product alone, divided by the op's.
    """
    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude each other.")
    if plots:
        from llama2gpu.measure.roofline_plot import require_matplotlib

        require_matplotlib()
    for path in (output, *plots):
        bench_options.check_output(path)
    todo = works(shape, ops, quants, tokens, context)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    bench = made(backends, device, dtype)
    with counting(quiet, "timing") as told:
        rows = bench.rows(todo, told)
    report = {**about(bench), "shape": shape, "rows": [row.fields() for row in rows]}
    title = f"{shape} on {report['device']}, {report['threads']} threads, {report['date']}"
    if as_json:
        click.echo(json.dumps(report, indent=1))
    elif as_csv:
        click.echo(as_lines(report["rows"]), nl=False)
    else:
        show(table(rows, title, bench))
    if not quiet:
        for row in rows:
            if row.problem:
                where = f"{row.backend} {row.op} ({row.case}, {row.weight})"
                click.echo(f"wrong: {where}: {row.problem}", err=True)
    if output is not None:
        write(output, shape, bench, rows)
    for path in plots:
        draw(path, bench, rows, title)
    ctx.exit(0 if all(row.checked for row in rows) else 1)


def works(
    shape: str, ops: list[str], quants: list[str], tokens: list[int], context: int
) -> "list[Work]":
    """The uses of ops that the options name."""
    from llama2gpu.errors import BackendError
    from llama2gpu.measure import kernel_work
    from llama2gpu.measure.kernel_bench import OPS
    from llama2gpu.measure.shapes import SHAPES

    (name,) = choose("shape", [shape], SHAPES)
    kinds = [QUANTS[quant] for quant in choose("quantization", quants, QUANTS)]
    chosen = choose("op", ops, OPS)
    every = kernel_work.works(SHAPES[name], chosen, kinds, tokens, context)
    found = [work for work in every if "penalized" not in work.case]  # which have no cost
    if not found:
        raise BackendError("these options leave nothing to measure: take more ops or kinds")
    return found


def made(names: list[str], device: str, dtype: str) -> "KernelBench":
    """The bench of the backends; raises `BackendError` for one that can't run, or elsewhere."""
    from llama2gpu.errors import BackendError
    from llama2gpu.measure.kernel_bench import KernelBench
    from llama2gpu.measure.kernel_timer import timer_for
    from llama2gpu.measure.roofs import Roofing
    from llama2gpu.weights import dtype_name

    found: list[tuple[Backend, str, torch.dtype]] = []
    for backend in chosen(names, device):
        kind = backend.activation_dtype(asked_type(dtype, backend.device))
        found.append((backend, dtype_name(kind), kind))
    if not found:
        raise BackendError("no backend was named: give --backend auto, all, or names")
    place = found[0][0].device
    if any(backend.device != place for backend, _, _ in found):
        raise BackendError("these backends run on different devices: say --device cpu")
    roofing = Roofing(place, {name: kind for _, name, kind in found})
    return KernelBench(found, timer_for(place), roofing.measure)


def chosen(names: list[str], device: str) -> "Iterator[Backend]":
    """The backends of those names; "all" is every one that runs on the device."""
    from llama2gpu.backends import available, choose_backend, probe, resolve_device

    if names == ["all"]:
        place = resolve_device(device)
        names = [name for name in available() if probe(name, place).ok]
    for name in names:
        yield choose_backend(name, device)


def asked_type(dtype: str, device: "torch.device") -> "torch.dtype":
    """The type of that name; auto: bfloat16, or what the device takes in its place."""
    import torch

    from llama2gpu.build import auto_dtype
    from llama2gpu.weights import DTYPES

    return auto_dtype(torch.bfloat16, device) if dtype == "auto" else DTYPES[dtype]


def about(bench: "KernelBench") -> dict[str, Any]:
    """What the figures were measured on, and the roofs."""
    from importlib import metadata

    from llama2gpu.cli.main import version
    from llama2gpu.measure.decode import machine

    told: dict[str, Any] = dict(machine(bench.backends[0][0].device))
    versions = {"llama2gpu": version(), "python": told.pop("python"), "torch": told.pop("torch")}
    for name in ("numpy", "triton"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if hasattr(os, "getloadavg"):
        told["load"] = [round(x, 1) for x in os.getloadavg()]
    return {**told, "versions": versions, "cache": bench.timer.cache, "roofs": bench.roof.fields()}


def write(path: Path, shape: str, bench: "KernelBench", rows: "list[Row]") -> None:
    """Writes the rows that are right, for `bench compare`."""
    from llama2gpu.errors import BackendError
    from llama2gpu.measure.decode import machine
    from llama2gpu.measure.kernel_result import KernelResult
    from llama2gpu.measure.results import write_results

    right = [row for row in rows if row.checked]
    if not right:
        raise BackendError("no row has a right result: there is nothing to write")
    place = machine(bench.backends[0][0].device)
    write_results(path, [KernelResult.of(row, shape, place) for row in right])


def draw(path: Path, bench: "KernelBench", rows: "list[Row]", title: str) -> None:
    """Writes the plot, whole or not at all."""
    from llama2gpu.measure.results import new_file
    from llama2gpu.measure.roofline_plot import roofline

    with new_file(path) as work:
        kind = path.suffix.lower().removeprefix(".")
        work.write_bytes(roofline(rows, bench.roof, title, kind))

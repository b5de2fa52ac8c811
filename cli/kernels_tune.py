"""`llama2gpu kernels tune`: the fastest tile of each matrix kernel on the GPU at hand."""

import json
from typing import TYPE_CHECKING

import click

from llama2gpu.cli import options
from llama2gpu.cli.kernels_options import (
    choose,
    choose_one,
    counting,
    gpu,
    shape,
    short,
    show,
    split_numbers,
    weights,
)

if TYPE_CHECKING:
    from rich.table import Table

    from llama2gpu.measure.tune import Found


@click.command("tune")
@shape
@weights
@click.option(
    "--tokens", default="1,16,64", show_default=True, metavar="NUMBERS", callback=split_numbers,
    help="New tokens, up to 64; what is found serves 1, 2 to 16, 17 to 32, or 33 to 64.",
)  # fmt: skip
@click.option("--quick", is_flag=True, help="Try the likeliest tiles only.")
@options.device
@options.as_json
@options.quiet
def tune_command(
    shape: str, weights: list[str], tokens: list[int], quick: bool, device: str, as_json: bool,
    quiet: bool,
) -> None:  # fmt: skip
    """Find the fastest tile of each matrix kernel on this GPU, and keep it.

    Each tile's results are compared with those of the shipped one before it is timed. What is at
    least 2 % faster goes into a file in the user's cache, which every later run on such a GPU with
    this version of Triton reads, unless LLAMA2GPU_NO_TUNED is set. Each find is written at once, so
    that Control-C loses only the kernel under way.
    """
    from llama2gpu.errors import BackendError
    from llama2gpu.measure import kernel_work
    from llama2gpu.measure.shapes import SHAPES

    name = choose_one("shape", shape, SHAPES)
    kinds = choose("kind of weight", weights, kernel_work.WEIGHTS)
    place = gpu(device, "tuned")
    import torch

    from llama2gpu.kernels.arch import arch_of
    from llama2gpu.kernels.tuned import tuned_path
    from llama2gpu.measure.cuda_bench import CudaBench
    from llama2gpu.measure.tune import keep, problems, tune

    arch, card = arch_of(place), torch.cuda.get_device_name(place)
    try:
        path = tuned_path(card)
    except RuntimeError as error:
        raise BackendError("there is no home folder to write to: set XDG_CACHE_HOME") from error
    todo = problems(SHAPES[name], kinds, tokens, arch)
    with counting(quiet, "tuning", lines=True) as told:
        found = list(keep(tune(todo, arch, CudaBench(place), quick, told), path, card, arch))
    if as_json:
        rows = [one.fields() for one in found]
        report = {"device": card, "arch": arch.name, "file": str(path), "kernels": rows}
        click.echo(json.dumps(report, indent=2))
        return
    show(table(found, card))
    better = sum(one.tile is not None for one in found)
    click.echo(f"{better} of {len(found)} are faster than shipped" + f": {path}" * (better > 0))


def table(found: list["Found"], card: str) -> "Table":
    """One line for each use of a kernel."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(
        title=f"{card}: microseconds with shipped and best tiles", title_style="bold",
        title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0),
        header_style="dim",
    )  # fmt: skip
    left = ("op", "kernel", "weight", "tile")
    headings = (
        "op",
        "kernel",
        "weight",
        "m",
        "n × k",
        "shipped",
        "best",
        "gain",
        "tile",
        "left out",
    )
    for heading in headings:
        made.add_column(heading, justify="left" if heading in left else "right", no_wrap=True)
    for one in found:
        made.add_row(*map(Text, cells(one)))
    return made


def cells(found: "Found") -> list[str]:
    """What a line of the table says."""
    work, tile = found.work, found.tile
    shape = f"{tile.block_n}×{tile.block}" if tile else "shipped"
    lanes = f", {tile.num_warps} warps" if tile else ""
    stages = f", {tile.num_stages} stages" if tile and found.use.tokens > 1 else ""
    return [
        work.op,
        short(found.kernel),
        work.weight,
        str(work.m),
        f"{work.n}×{work.k}",
        f"{found.shipped_us:.1f}",
        f"{found.best_us:.1f}",
        f"{found.gain:.1%}" if tile else "",
        f"{shape}{lanes}{stages}",
        f"{found.failed + found.wrong}/{found.tried}",
    ]

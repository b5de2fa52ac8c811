"""`llama2gpu plan`: what a model takes of memory, before anything is loaded."""

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from llama2gpu.cli import bench_options, options

if TYPE_CHECKING:
    import torch

    from llama2gpu.checkpoints import Checkpoint
    from llama2gpu.plan import Need, Planner

#: The most that --memory takes, GB.
_MOST_MEMORY = 1e9


def read_quant(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Callback of --quant: "none" or what `parse_spec` takes."""
    return str(bench_options.read_quants(ctx, param, (value,))[0])


def read_memory(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    """Callback of --memory: a number, which NaN is not."""
    if value is not None and not value <= _MOST_MEMORY:
        raise click.BadParameter(f"{value:g} is none: give up to {_MOST_MEMORY:g}.")
    return value


@click.command()
@click.argument("source", metavar=f"{options.MODEL}|SHAPE")
@click.option(
    "--ctx", "context", type=click.IntRange(1, 1 << 30), help="Tokens of a sequence.  [default: "
    "the model's context]",
)  # fmt: skip
@click.option(
    "--batch", type=click.IntRange(1, 1 << 16), default=1, show_default=True,
    help="Sequences at once.",
)  # fmt: skip
@click.option(
    "--quant", metavar="SPEC", default="none", show_default=True, callback=read_quant,
    help="Quantized as it is loaded: int8, int4, int4:32, int4+head, …",
)  # fmt: skip
@click.option("--quant-head", is_flag=True, help="The output matrix too, as +head in a SPEC.")
@options.kv_dtype("")
@options.dtype("Type of dense weights")
@options.backend
@options.device
@click.option(
    "--memory", type=click.FloatRange(0, min_open=True), metavar="GB", callback=read_memory,
    help="Plan for a device with so much free memory instead of what this one has.",
)  # fmt: skip
@options.as_json
@click.pass_context
def command(
    ctx: click.Context, source: str, context: int | None, batch: int, quant: str,
    quant_head: bool, kv_dtype: str, dtype: str, backend: str, device: str, memory: float | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Say what a model takes of the device's memory, and what would fit if it does not.

    From the headers alone, in the forms that the backend keeps; SHAPE is a model without a file,
    such as llama2-70b. `run` stops with the same numbers where --ctx, or without it 512 tokens,
    can't fit. The exit status is 1 where it does not.
    """
    from llama2gpu.api import KV_DTYPES
    from llama2gpu.backends import choose_backend
    from llama2gpu.build import weight_type
    from llama2gpu.memory import free_memory
    from llama2gpu.open_quantizer import check_dense
    from llama2gpu.plan import Need, Planner
    from llama2gpu.quant.spec import parse_spec

    spec = None if quant == "none" else parse_spec(quant)
    if quant_head:
        if spec is None:
            raise click.UsageError("--quant-head needs --quant.")
        spec = replace(spec, head=True)
    checkpoint, server = opened(source), choose_backend(backend, device)
    if spec is not None:
        check_dense(checkpoint)
    planner = Planner(checkpoint, server, weight_type(checkpoint, server.device, dtype), spec)
    need = Need(context or checkpoint.config.context, batch, KV_DTYPES[kv_dtype])
    free = free_memory(server.device) if memory is None else round(memory * 1e9)
    fits = show(planner, need, free, as_json)
    ctx.exit(0 if fits else 1)


def opened(source: str) -> "Checkpoint":
    """The checkpoint, or random weights of a shape."""
    from llama2gpu.checkpoints import RandomCheckpoint, open_checkpoint

    if source not in bench_options.SHAPES:
        return open_checkpoint(source)
    import torch

    from llama2gpu.measure.shapes import SHAPES

    return RandomCheckpoint(SHAPES[source], torch.bfloat16)


def show(planner: "Planner", need: "Need", free: int | None, as_json: bool) -> bool:
    """Prints the plan; returns whether it fits, as far as anyone can tell."""
    from llama2gpu.plan_fit import changes

    plan = planner.plan(need)
    fits = free is None or plan.total <= free
    others = [] if fits or free is None else list(changes(planner, need, free))
    if as_json:
        told = asdict(plan) | {"total": plan.total, "free": free, "fits": fits}
        told |= {"context": need.context, "batch": need.batch}
        told["changes"] = [{"flags": flags, "total": total} for flags, total in others]
        click.echo(json.dumps(told, indent=2))
        return fits
    for name, size, what in rows(planner, need):
        click.echo(f"{name:<9}{size:>9}  {what}".rstrip())
    verdict(planner.backend.device, plan.total, free, others)
    return fits


def rows(planner: "Planner", need: "Need") -> "list[tuple[str, str, str]]":
    """Name, size and remark of each part."""
    from llama2gpu.plan import text_of
    from llama2gpu.weights import dtype_name

    plan = planner.plan(need)
    found = [
        ("weights" if i == 0 else "", text_of(count), kind)
        for i, (kind, count) in enumerate(plan.weights.items())
    ]
    sequences = f"{need.batch} × " if need.batch > 1 else ""
    kind = "int8" if need.kv_dtype is not None else dtype_name(planner.activations)
    found.append(("cache", text_of(plan.cache), f"{sequences}{need.context:,} tokens, {kind}"))
    found.append(("scratch", text_of(plan.scratch), "activations and results of a step"))
    if plan.loading > plan.cache + plan.scratch:
        found.append(("loading", text_of(plan.loading), "while the weights come, instead of these"))
    return found


def verdict(device: "torch.device", total: int, free: int | None, others: "list[Any]") -> None:
    """The sum beside what is free, and what would fit."""
    from llama2gpu.plan import text_of

    if free is None:
        click.echo(f"{'total':<9}{text_of(total):>9}  how much {device} has free is not known")
        return
    word = click.style("fits", fg="green") if total <= free else click.style("too much", fg="red")
    click.echo(f"{'total':<9}{text_of(total):>9}  {word}: {device} has {text_of(free)} free")
    for change in others:
        click.echo(f"{'':<9}{text_of(change.total):>9}  with {change.flags}")
    if total > free and not others:
        click.echo(f"{'':<20}nothing here makes it fit: take a smaller model")

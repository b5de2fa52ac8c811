"""`llama2gpu kernels diff`: where two backends part, op by op."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llama2gpu.cli import options, quant_options
from llama2gpu.cli.kernels_options import counting, show

if TYPE_CHECKING:
    from rich.table import Table

    from llama2gpu.measure.difference import Difference, LogitDistance
    from llama2gpu.measure.model_pair import ModelPair
    from llama2gpu.measure.op_errors import Spot


@click.command("diff")
@click.option(
    "--a", required=True, metavar="BACKEND",
    help="The backend in question: triton, cupy, torch, numpy, or one that is plugged in.",
)  # fmt: skip
@click.option(
    "--b", required=True, metavar="BACKEND",
    help="The trusted one, whose activations are the inputs of both.",
)  # fmt: skip
@options.model
@options.tokenizer
@click.option(
    "--text", metavar="FILE", type=click.Path(path_type=Path),
    help="Text to run through them, instead of a story that comes with the program.",
)  # fmt: skip
@click.option(
    "--tokens", type=click.IntRange(2), help="Tokens of it.  [default: 160, or what there is]"
)
@options.dtype("Type of weights that are not quantized")
@options.kv_dtype("")
@quant_options.quantization("none")
@options.device
@options.rope_theta
@options.rope_scaling
@options.norm_eps
@options.threads
@click.option("--layers", "each", is_flag=True, help="A row for each layer and way.")
@options.as_json
@options.quiet
def diff_command(
    text: Path | None, tokens: int | None, each: bool, as_json: bool,
    quiet: bool, **values: Any,
) -> None:  # fmt: skip
    """Run the same tokens through two backends, and say at which layer and op they part.

    Each op of each layer gets the same inputs on both: a prompt, then token by token, then the same
    in other chunks. It differs where its error is beyond the tolerance of its type and beyond four
    times the noise, which is how far a backend is from itself when it does the same again and in
    other chunks. "unsteady" is one that is from itself what it may not be from the other. "layer"
    is a layer in one call, where a backend takes it so. Then each goes its own way to the logits:
    the KL divergence of a from b in nats, and how often both find the same token likeliest.

    Exit status 1 where they differ. Needs no GPU: TRITON_INTERPRET=1 runs Triton's kernels on a
    CPU, for few tokens.
    """
    pair, found = measure(text, tokens, quiet, values)
    if not quiet:
        click.echo(headline(pair, found), err=True)
        if pair.left_dense is not None:
            click.echo(pair.left_dense, err=True)
    if as_json:
        click.echo(json.dumps(report(pair, found), allow_nan=False))
    else:
        show(table(found.spots if each else found.worst))
        for line in conclusion(pair, found):
            click.echo(line)
    click.get_current_context().exit(found.first is not None)


def measure(
    text: Path | None, tokens: int | None, quiet: bool, values: dict[str, Any]
) -> tuple["ModelPair", "Difference"]:
    """The two models, and what they are to each other."""
    spec = quant_options.quant_spec(values)

    import torch

    from llama2gpu.api import DEFAULT_MODEL, KV_DTYPES
    from llama2gpu.cli.progress import loading
    from llama2gpu.measure.difference import find_difference, read_ids
    from llama2gpu.measure.model_pair import load_pair

    if values["threads"]:
        torch.set_num_threads(values["threads"])
    alike = ["tokenizer", "device", "dtype", "calibration", "rope_theta", "rope_scaling"]
    alike += ["norm_eps"]
    with loading(quiet) as progress:
        pair = load_pair(
            values["a"],
            values["b"],
            values["model"] or DEFAULT_MODEL,
            quant=spec or "none",
            progress=progress,
            **{name: values[name] for name in alike},
        )
    ids = read_ids(pair, text, tokens)
    kv_dtype, quantized = KV_DTYPES[values["kv_dtype"]], pair.quant is not None
    with counting(quiet, "comparing") as told:
        found = find_difference(
            pair.a, pair.b, ids, kv_dtype=kv_dtype, quantized=quantized, told=told
        )
    return pair, found


def headline(pair: "ModelPair", found: "Difference") -> str:
    """What was compared on what, in one line."""
    a, b = (f"{model.backend.label} on {model.backend.device}" for model in (pair.a, pair.b))
    count = f"{sum(found.chunks)} tokens, the last {len(found.chunks) - 1} one by one"
    parts = [pair.checkpoint.path.name, f"{a} beside {b}", f"dtype {pair.dtype}"]
    parts += [f"quantized to {pair.quant}"] if pair.quant else []
    parts += ["cache int8"] if found.quantized_cache else []
    return " · ".join([*parts, count])


def report(pair: "ModelPair", found: "Difference") -> dict[str, Any]:
    """What --json prints."""
    from llama2gpu.measure.decode import machine

    sides = {
        name: {
            "backend": model.backend.label,
            "device": str(model.backend.device),
            "activations": str(model.activations).removeprefix("torch."),
        }
        for name, model in (("a", pair.a), ("b", pair.b))
    }
    return {
        "model": pair.checkpoint.path.name,
        **sides,
        "dtype": pair.dtype,
        "quant": pair.quant,
        "kv_dtype": "int8" if found.quantized_cache else "auto",
        "tolerance": str(found.tolerance).removeprefix("torch."),
        "tokens": sum(found.chunks),
        **found.fields(),
        "machine": machine(pair.a.backend.device),
    }


def table(spots: list["Spot"]) -> "Table":
    """One line for each spot; the noise is the larger of the two backends'."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim")
    for name in ("op", "layer", "way"):
        made.add_column(name, justify="right" if name == "layer" else "left", no_wrap=True)
    for name in ("largest", "limit", "rms", "limit", "noise"):
        made.add_column(name, justify="right", no_wrap=True)
    made.add_column("verdict", no_wrap=True)
    for spot in spots:
        made.add_row(*map(Text, cells(spot)))
    return made


def cells(spot: "Spot") -> list[str]:
    """What a line of the table says."""
    layer = spot.place.layer
    figures = (
        spot.error.largest,
        spot.limit.largest,
        spot.error.rms,
        spot.limit.rms,
        max(spot.noise_a.largest, spot.noise_b.largest),
    )
    start = [op_name(spot), "" if layer is None else str(layer), spot.phase]
    return [*start, *(f"{figure:.1e}" if figure else "0" for figure in figures), spot.verdict]


def op_name(spot: "Spot") -> str:
    """The op, and which of its outputs or matrices."""
    return f"{spot.place.op} {spot.place.part}".rstrip()


def conclusion(pair: "ModelPair", found: "Difference") -> list[str]:
    """The logits, and the first place where they part, in lines."""
    a, b = pair.a.backend.label, pair.b.backend.label
    lines = [
        f"logits of {a} and {b}: {distance(found.logits)}",
        f"logits of {b} in other chunks: {distance(found.noise)}",
    ]
    if found.first is None:
        return [*lines, f"no op of {a} differs from {b}'s"]
    s = found.first
    where = "" if s.place.layer is None else f"layer {s.place.layer}, "
    verb = "differ" if s.verdict == "differs" else "are unsteady"
    return [
        *lines,
        f"{a} and {b} {verb} first at {where}{op_name(s)}, {s.phase}: largest error "
        f"{s.error.largest:.1e} (limit {s.limit.largest:.1e}), rms {s.error.rms:.1e} "
        f"(limit {s.limit.rms:.1e})",
    ]


def distance(d: "LogitDistance") -> str:
    """KL and agreement in words."""
    return (
        f"KL {d.divergence:.1e} nats, 99th percentile {d.divergence_99:.1e}, "
        f"top-1 agreement {d.agreement:.2%}"
    )

"""`llama2gpu inspect`: what a checkpoint holds, without reading its weights."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from llama2gpu.cli import options

if TYPE_CHECKING:
    from llama2gpu.checkpoints import Checkpoint


@click.command()
@click.argument("source", metavar=options.MODEL)
@click.option("--tensors", "list_tensors", is_flag=True, help="List every tensor.")
@options.as_json
def command(source: str, list_tensors: bool, as_json: bool) -> None:
    """Show what a checkpoint holds.

    Its format, configuration, size and tokenizer, from its headers alone.
    """
    from llama2gpu.checkpoints import open_checkpoint

    checkpoint = open_checkpoint(source)
    facts = describe(checkpoint)
    tensors = [asdict(tensor) for tensor in checkpoint.tensors()] if list_tensors else []
    if as_json:
        click.echo(json.dumps(facts | ({"tensors": tensors} if list_tensors else {}), indent=2))
        return
    for line in (*render(facts), *table(tensors)):
        click.echo(line)


def describe(checkpoint: "Checkpoint") -> dict[str, Any]:
    """The facts of a checkpoint, ready for JSON; sizes in bytes."""
    sizes = [tensor.nbytes for tensor in checkpoint.tensors()]
    return {
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "dtype": str(checkpoint.dtype).removeprefix("torch."),
        "quantization": checkpoint.quantization,
        "parameters": checkpoint.config.parameters,
        "tensor_count": len(sizes),
        "tensor_bytes": sum(sizes),
        "config": asdict(checkpoint.config),
        "bos_id": checkpoint.bos_id,
        "stop_ids": list(checkpoint.stop_ids),
        "tokenizer": describe_tokenizer(checkpoint),
    }


def describe_tokenizer(checkpoint: "Checkpoint") -> dict[str, Any]:
    """The tokenizer within or beside a checkpoint, or under `error` why none of them serves."""
    from llama2gpu.errors import TokenizerError
    from llama2gpu.tokenizer import tokenizer_of

    try:
        found = tokenizer_of(checkpoint)
    except TokenizerError as error:
        return {"error": str(error)}
    return {
        "path": str(found.path),
        "format": found.format,
        "vocab": found.vocab,
        "bos_id": found.bos_id,
        "eos_ids": list(found.eos_ids),
    }


def render(facts: dict[str, Any], indent: str = "") -> Iterator[str]:
    """A report of two columns; a group of facts follows under its name."""
    width = 2 + max(map(len, facts))
    for name, value in facts.items():
        label = name.replace("_", " ")
        if isinstance(value, dict):
            yield f"{indent}{click.style(label, bold=True)}"
            yield from render(value, indent + "  ")
        else:
            yield f"{indent}{click.style(label.ljust(width), dim=True)}{show(name, value)}"


def show(name: str, value: Any) -> str:
    """One value for people: large counts in groups of three, sizes also in binary units."""
    if name.endswith("bytes"):
        return f"{value:,} ({binary(value)})"
    if name == "parameters":
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def binary(size: float) -> str:
    """A size in bytes with the binary unit that suits it."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


def table(tensors: list[dict[str, Any]]) -> Iterator[str]:
    """Name, shape, stored type and bytes of each tensor, in aligned columns under a heading."""
    if not tensors:
        return
    rows = [("tensor", "shape", "dtype", "bytes")] + [
        (t["name"], " x ".join(map(str, t["shape"])), t["dtype"], f"{t['nbytes']:,}")
        for t in tensors
    ]
    name, shape, dtype, size = (max(map(len, column)) for column in zip(*rows, strict=True))
    yield ""
    for row in rows:
        line = f"{row[0]:<{name}}  {row[1]:>{shape}}  {row[2]:<{dtype}}  {row[3]:>{size}}"
        yield click.style(line, bold=row is rows[0])

"""`llama2gpu convert`: a checkpoint in another format."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llama2gpu.cli import options

if TYPE_CHECKING:
    from llama2gpu.checkpoints.tally import Tally

#: The formats of `checkpoints.convert`, whose import would take a second.
FORMATS = ("hf", "llama2c-v0", "llama2c-v1", "llama2c-v2", "gguf")
#: The blocks of `checkpoints.gguf_encode`, by the names of the command line.
QUANTS = {"q8_0": "Q8_0", "q4_0": "Q4_0", "q4_1": "Q4_1"}
#: Types by name; the short ones are GGUF's.
DTYPES = {
    "fp32": "float32",
    "f32": "float32",
    "fp16": "float16",
    "f16": "float16",
    "bf16": "bfloat16",
}


@click.command()
@click.argument("source", metavar=options.MODEL)
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "form",
    type=click.Choice(FORMATS),
    required=True,
    help="hf: a Hugging Face folder. llama2c-v0: float32, for llama2.c's run; v1: the same with a "
    "header; v2: int8, for its runq. gguf: for llama.cpp.",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", *DTYPES]),
    default="auto",
    show_default=True,
    help="Type of dense matrices, for hf and gguf; auto keeps the stored one.",
)
@click.option(
    "--quant",
    type=click.Choice(["keep", "none", *QUANTS]),
    default="keep",
    show_default=True,
    help="keep: quantized matrices as they are. none: all dense. Others, for gguf: 32 weights a "
    "scale, the output matrix in q8_0.",
)
@options.tokenizer
@options.rope_theta
@options.rope_scaling
@options.norm_eps
@click.option(
    "--overwrite", is_flag=True, help="Replace OUT, and tokenizer.bin beside a llama2.c file."
)
@options.as_json
@options.quiet
def command(source: str, out: Path, form: str, as_json: bool, quiet: bool, **rest: Any) -> None:
    """Write a checkpoint in another format, with its tokenizer.

    OUT is a folder for hf, and else a file; tokenizer.bin goes beside a llama2.c file. What can be
    kept is kept to the bit, and what was rounded is told. `llama2gpu quantize` makes quantized
    Hugging Face folders.
    """
    check_usage(form, rest["dtype"], rest["quant"])
    from llama2gpu.cli.progress import loading, uninterrupted

    with uninterrupted():  # half an import is worse than none
        import torch

        from llama2gpu.checkpoints import open_checkpoint
        from llama2gpu.checkpoints.convert import Target, convert
        from llama2gpu.errors import TokenizerError
        from llama2gpu.tokenizer import tokenizer_of
    asked = {name: rest[name] for name in ("rope_theta", "rope_scaling", "norm_eps")}
    checkpoint = open_checkpoint(source, **asked)
    dtype = None if rest["dtype"] == "auto" else getattr(torch, DTYPES[rest["dtype"]])
    words, problems = None, []
    try:
        words = tokenizer_of(checkpoint, rest["tokenizer"])
    except TokenizerError as error:
        if rest["tokenizer"] is not None:
            raise
        problems = [str(error)]
    quant = QUANTS.get(rest["quant"])
    target = Target(form, out, dtype, quant, rest["quant"] == "none", rest["overwrite"])
    with loading(quiet, "converting") as progress:
        tally = convert(checkpoint, target, words, progress)
    facts = describe(form, out, tally) | {"notes": problems + tally.notes}
    if not quiet:
        for note in facts["notes"]:
            click.echo(f"note: {note}", err=True)
    click.echo(json.dumps(facts, indent=2) if as_json else told(facts))


def check_usage(form: str, dtype: str, quant: str) -> None:
    """Refuses options that a format has no use for."""
    if form.startswith("llama2c"):
        if dtype != "auto":
            raise click.UsageError(f"--dtype is for --to hf and gguf: {form} has its own.")
        if quant in QUANTS:
            raise click.UsageError(f"--quant {quant} is for --to gguf; llama2c-v2 is int8.")
        if quant == "none" and form == "llama2c-v2":
            raise click.UsageError("--quant none is for other formats: llama2c-v2 is int8.")
    if form == "hf" and quant in QUANTS:
        raise click.UsageError(
            f"--quant {quant} is for --to gguf; `llama2gpu quantize` makes quantized folders."
        )


def describe(form: str, out: Path, tally: "Tally") -> dict[str, Any]:
    """What was written, ready for JSON; sizes in bytes, the error relative."""
    files = {str(path): path.stat().st_size for path in tally.files}
    return {
        "format": form,
        "path": str(out),
        "files": files,
        "bytes": sum(files.values()),
        "tensors": tally.exact + tally.rounded,
        "exact": tally.exact,
        "rounded": tally.rounded,
        "error": tally.error,
        "lossless": not tally.rounded,
    }


def told(facts: dict[str, Any]) -> str:
    """The same in one line."""
    what = (
        f"{facts['path']}: {facts['format']}, {facts['bytes']:,} bytes, {facts['tensors']} tensors"
    )
    if facts["lossless"]:
        return f"{what}, all exact"
    return f"{what}, {facts['rounded']} rounded (relative error {facts['error']:.2g})"

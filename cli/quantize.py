"""`llama2gpu quantize`: a checkpoint as a quantized Hugging Face folder."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llama2gpu.cli import options, quant_options

if TYPE_CHECKING:
    from llama2gpu.quantizer import Outcome


@click.command()
@click.argument("source", metavar=options.MODEL)
@click.argument("out", metavar="FOLDER", type=click.Path(path_type=Path))
@quant_options.quantization(default="int4")
@options.tokenizer
@options.backend
@options.device
@options.threads
@click.option("--overwrite", is_flag=True, help="Replace a FOLDER that llama2gpu wrote.")
@click.option("--no-errors", is_flag=True, help="Leave out the table of errors, and its time.")
@options.as_json
@options.quiet
def command(
    source: str,
    out: Path,
    overwrite: bool,
    no_errors: bool,
    as_json: bool,
    quiet: bool,
    **rest: Any,
) -> None:
    """Quantize a checkpoint into a Hugging Face FOLDER.

    The folder has GPTQ's layout, which other engines read too. A table tells the relative error
    of each matrix: of its outputs on the calibration text for gptq and awq, else of its weights.
    """
    from llama2gpu.cli.progress import loading, uninterrupted

    spec = quant_options.quant_spec(rest)
    if spec is None:
        raise click.UsageError("--quant none leaves nothing to do.")
    with uninterrupted():  # half an import is worse than none
        import torch

        from llama2gpu.backends import choose_backend
        from llama2gpu.checkpoints import open_checkpoint
        from llama2gpu.checkpoints.save import save_huggingface
        from llama2gpu.open_quantizer import open_quantizer
        from llama2gpu.tokenizer import load_tokenizer
    if rest["threads"]:
        torch.set_num_threads(rest["threads"])
    outcomes: list[Outcome] = []
    checkpoint, backend = open_checkpoint(source), choose_backend(rest["backend"], rest["device"])
    words = rest["tokenizer"] and load_tokenizer(rest["tokenizer"], vocab=checkpoint.config.vocab)
    quantizer = open_quantizer(
        checkpoint, spec, backend, words, rest["calibration"], outcomes.append, errors=not no_errors
    )
    with loading(quiet, "quantizing") as progress:
        save_huggingface(
            checkpoint, out, quantizer, tokenizer=words, device=backend.device,
            overwrite=overwrite, progress=progress,
        )  # fmt: skip
    if as_json:
        click.echo(json.dumps([asdict(outcome) for outcome in outcomes], indent=2))
    else:
        _table(outcomes)


def _table(outcomes: "list[Outcome]") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column("matrix")
    table.add_column("became")
    table.add_column("relative error", justify="right")
    for outcome in outcomes:
        error = "" if outcome.error is None or not outcome.quantized else f"{outcome.error:.4f}"
        table.add_row(outcome.name, outcome.kind, error)
    Console().print(table)

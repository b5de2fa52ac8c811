"""Options and arguments that several commands take, each said once."""

import sys
from pathlib import Path

import click


def read_text(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Callback of a text argument, for which `-` stands for all of standard input, as it is.

    Bytes that are no UTF-8 become lone surrogates, which `Tokenizer.encode` reads.
    """
    if value != "-":
        return value
    if sys.stdin is None:
        raise click.BadParameter("standard input is closed.")
    return sys.stdin.buffer.read().decode("utf-8", "surrogateescape")


MODEL = "FILE|FOLDER|NAME"

model = click.option(
    "-m",
    "--model",
    metavar=MODEL,
    help="Checkpoint: a file, a folder, or a name on Hugging Face's hub.",
)
tokenizer = click.option(
    "--tokenizer",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Tokenizer, instead of the one that lies with the checkpoint.",
)
rope_theta = click.option(
    "--rope-theta",
    type=click.FloatRange(min=1.0),
    help="Base of the RoPE frequencies, where the checkpoint has none or a wrong one.",
)
norm_eps = click.option(
    "--norm-eps",
    type=click.FloatRange(min=0.0, max=1.0, min_open=True, max_open=True),
    help="Epsilon of RMSNorm, where the checkpoint has none or a wrong one.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")

"""`llama2gpu tokenize`: the tokens that a model sees in a text."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llama2gpu.cli import options

if TYPE_CHECKING:
    from llama2gpu.tokenizer import Tokenizer


@click.command()
@click.argument("text", callback=options.read_text)
@options.tokenizer
@options.model
@click.option("--no-bos", is_flag=True, help="Leave out the token that starts a text.")
@click.option("--special", is_flag=True, help="Read the names of special tokens as those tokens.")
@click.option("--ids", "only_ids", is_flag=True, help="Print the ids alone, on one line.")
@options.as_json
def command(
    text: str,
    tokenizer: Path | None,
    model: str | None,
    no_bos: bool,
    special: bool,
    only_ids: bool,
    as_json: bool,
) -> None:
    """Show the tokens of a text.

    TEXT is the text, or - for all of standard input, as it is. Each line of the answer is an id
    and the piece of text that it stands for, in quotes and with escapes for what can't be printed.
    """
    if only_ids and as_json:
        raise click.UsageError("--ids and --json exclude each other: the object holds the ids.")
    chosen = choose(tokenizer, model)
    ids = chosen.encode(text, bos=not no_bos, special=special)
    pieces = [chosen.piece(id) for id in ids]
    if as_json:
        click.echo(json.dumps({"ids": ids, "pieces": pieces, "format": chosen.format}))
    elif only_ids:
        click.echo(" ".join(map(str, ids)))
    else:
        width = len(str(max(ids, default=0)))
        for id, piece in zip(ids, pieces, strict=True):
            click.echo(f'{id:>{width}}  "{piece}"')


def choose(path: Path | None, model: str | None) -> "Tokenizer":
    """The tokenizer at the path, or the model's own; held to the model's vocabulary, if given."""
    from llama2gpu.tokenizer import load_tokenizer, tokenizer_of

    if model is None:
        if path is None:
            raise click.UsageError(f"Give --tokenizer PATH or --model {options.MODEL}.")
        return load_tokenizer(path)
    from llama2gpu.checkpoints import open_checkpoint

    return tokenizer_of(open_checkpoint(model), path)

"""`python -m llama2gpu.training.stories --words 5000000 --seed 1 > stories.txt`."""

import os
import sys

import click

from llama2gpu.training.stories.engine import generate

SEPARATOR = "<|endoftext|>"


def write_stories(words: int, seed: int) -> None:
    """Print whole stories, each followed by a separator line, until `words` words are out."""
    for story in generate(seed):
        sys.stdout.write(f"{story}\n{SEPARATOR}\n")
        words -= len(story.split())
        if words <= 0:
            break
    sys.stdout.flush()


@click.command(help="Write a corpus of children's stories to standard output.")
@click.option("--words", type=click.IntRange(min=1), default=5_000_000, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
def main(words: int, seed: int) -> None:
    """Write the corpus; a reader that goes away early ends it without an error."""
    try:
        write_stories(words, seed)
    except BrokenPipeError:
        # What is still buffered goes nowhere, so that the flush at exit does not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()

"""A server of random weights, for `bench.serve`: a shape, what is quantized, a port, a file."""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import click

from bench.serve_client import KEY
from llama2gpu.api import Llama
from llama2gpu.cli import bench_options
from llama2gpu.engine import Engine
from llama2gpu.measure.subject import Subject
from llama2gpu.plan_fit import cache_pages
from llama2gpu.server.job_store import JobStore
from llama2gpu.server.logs import json_lines
from llama2gpu.server.serve import bound_memory, listen, serve
from llama2gpu.server.settings import Settings
from llama2gpu.tokenizer import Tokenizer
from llama2gpu.tokenizer.base import Token


class Numbers(Tokenizer):
    """A tokenizer for models that nobody trained: each word is a number, and that is its token."""

    format, bos_id, eos_ids = "numbers", None, ()

    def __init__(self, vocab: int) -> None:
        self.vocab = vocab

    def _encode(self, text: str) -> list[int]:
        return [int(word) % self.vocab if word.isdecimal() else 0 for word in text.split()]

    def _token(self, id: int) -> Token:
        return Token(b" %d" % id)

    def _controls(self) -> Mapping[str, int]:
        return {}


def open_shape(subject: Subject, sequences: int = 1) -> Llama:
    """Random weights, with pages for so many sequences at once."""
    model = subject.open(0)
    pages = cache_pages(model, None, sequences, None)
    engine = Engine(model, max_sequences=sequences, max_pages=pages)
    return Llama(subject.random(engine.device), Numbers(model.config.vocab), engine)


@click.command()
@click.option("--shape", type=click.Choice(bench_options.SHAPES), required=True)
@click.option("--quant", default="none")
@click.option("--dtype", default="bf16")
@click.option("--device", default="auto")
@click.option("--backend", default="auto")
@click.option("--port", type=int, required=True)
@click.option("--max-batch", type=int, default=64)
@click.option("--jobs", type=click.Path(path_type=Path), required=True)
def main(
    shape: str,
    quant: str,
    dtype: str,
    device: str,
    backend: str,
    port: int,
    max_batch: int,
    jobs: Path,
) -> None:
    """Serve it until a signal ends it."""
    bound_memory()
    llama = open_shape(Subject(shape, backend, device, dtype, quant), max_batch)
    settings = Settings(shape, api_key=KEY, max_batch=max_batch)
    with (
        json_lines(quiet=True),
        listen("127.0.0.1", port) as found,
        closing(JobStore(jobs)) as store,
    ):
        serve(llama, settings, store, found)


if __name__ == "__main__":
    main()

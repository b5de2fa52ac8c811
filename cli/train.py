"""`llama2gpu train`: a small Llama from text files."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from llama2gpu.cli import options
from llama2gpu.config import LIMITS

if TYPE_CHECKING:
    from llama2gpu.training.loop import Record
    from llama2gpu.training.plan import Plan
    from llama2gpu.training.session import Session

_SHAPE = {
    "dim": (256, "Width of the model."),
    "layers": (4, "Decoder layers."),
    "heads": (4, "Query heads; they divide --dim."),
    "kv_heads": (2, "Key-value heads; they divide --heads."),
    "hidden": (640, "Width of the feed-forward."),
}
_COUNTS = {
    "context": (512, "Tokens of a training window, and positions of a new model."),
    "batch": (8, "Windows at once."),
    "accumulate": (1, "Batches whose gradients make one step."),
    "steps": (2000, "Steps of the optimizer."),
    "eval_every": (100, "Steps between measurements of the held-out loss."),
    "save_every": (100, "Steps between saved states."),
}
#: Options that a plan takes as they are.
_ALIKE = ("context", "vocab", "held_out", "save_every", "tokenizer", "init_from")


def counts(function: Any) -> Any:
    """The options that are positive whole numbers."""
    for name, (default, text) in reversed((_SHAPE | _COUNTS).items()):
        flag = "--" + name.replace("_", "-")
        kind = click.IntRange(1, LIMITS.get(name))
        decorate = click.option(flag, type=kind, default=default, show_default=True, help=text)
        function = decorate(function)
    return function


@click.command()
@click.argument(
    "texts", metavar="TEXT...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option(
    "-o",
    "--out",
    required=True,
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Folder to write the model to.",
)
@click.option(
    "--tokenizer",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Take this tokenizer instead of training one.",
)
@click.option(
    "--vocab",
    type=click.IntRange(260, 1 << 20),
    default=2048,
    show_default=True,
    help="Tokens of the tokenizer that is trained.",
)
@click.option(
    "--init-from", metavar=options.MODEL, help="Go on from this checkpoint, with its tokenizer."
)
@counts
@click.option("--untied", is_flag=True, help="Give the output a matrix of its own.")
@click.option(
    "--lr",
    type=click.FloatRange(0, min_open=True),
    callback=options.finite,
    default=2e-3,
    show_default=True,
    help="Highest learning rate.",
)
@click.option(
    "--warmup",
    type=click.IntRange(0),
    help="Steps of warm-up.  [default: a twentieth, at most 200]",
)
@click.option(
    "--held-out",
    type=click.FloatRange(0, 0.5),
    callback=options.finite,
    default=0.01,
    show_default=True,
    help="Share of the text that is never trained on.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Repeat a training.",
)
@options.device
@click.option(
    "--dtype",
    type=click.Choice(["auto", "fp32", "bf16"]),
    default="auto",
    show_default=True,
    help="Type to multiply in; the weights that are trained stay fp32.",
)
@click.option(
    "--save-as",
    type=click.Choice(["fp32", "bf16"]),
    default="bf16",
    show_default=True,
    help="Type of the written weights.",
)
@options.threads
@click.option("--resume", is_flag=True, help="Continue an unfinished training of FOLDER.")
@click.option("--overwrite", is_flag=True, help="Replace a FOLDER that this command wrote.")
@options.quiet
def command(resume: bool, overwrite: bool, quiet: bool, **values: Any) -> None:
    """Train a small Llama on text files.

    TEXT is one or more UTF-8 files; a line <|endoftext|> stands between two documents of a file.
    FOLDER becomes a Hugging Face folder: the model and its tokenizer, metrics.jsonl, a loss curve
    and training.json. Until then FOLDER.training holds the work, which --resume goes on with after
    Control-C or a crash; repeat the other arguments.
    """
    ctx = click.get_current_context()
    given = [
        name
        for name in (*_SHAPE, "vocab", "untied")
        if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT
    ]
    if values["init_from"] is not None and given:
        raise click.UsageError(f"--init-from has its own --{given[0].replace('_', '-')}.")

    import torch

    from llama2gpu.training.session import Session

    if values["threads"]:
        torch.set_num_threads(values["threads"])
    plan = make_plan(values)

    def tell(line: str) -> None:
        if not quiet:
            click.echo(line, err=True)

    session = Session(plan, resume=resume, overwrite=overwrite, tell=tell)
    tell(_headline(session))
    with interrupted() as stopped, progress(plan, session.done, quiet) as report:
        finished = session.run(report, stopped)
    if not finished:
        tell(f"stopped after step {session.done}: the same command with --resume goes on")
        ctx.exit(130)
    tell(f"{values['out']} is written: llama2gpu run --model {values['out']}")


def make_plan(values: dict[str, Any]) -> "Plan":
    """The options as a plan."""
    import torch

    from llama2gpu.backends.choose import resolve_device
    from llama2gpu.training.loop import Settings, training_dtype
    from llama2gpu.training.plan import Plan, Shape

    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    v, device = values, resolve_device(values["device"])
    settings = Settings(
        steps=v["steps"],
        batch=v["batch"],
        accumulate=v["accumulate"],
        lr=v["lr"],
        warmup=min(v["steps"] // 20, 200) if v["warmup"] is None else v["warmup"],
        seed=v["seed"],
        eval_every=v["eval_every"],
        dtype=dtypes.get(v["dtype"]) or training_dtype(device),
    )
    return Plan(
        texts=v["texts"],
        out=v["out"].resolve(),
        settings=settings,
        shape=Shape(**{name: v[name] for name in _SHAPE}, tied=not v["untied"]),
        device=device,
        stored=dtypes[v["save_as"]],
        **{name: v[name] for name in _ALIKE},
    )


def _headline(session: "Session") -> str:
    trainer = session.trainer
    corpus, config, settings = trainer.corpus, trainer.net.config, trainer.settings
    parts = [
        f"{config.parameters / 1e6:.2f}M parameters",
        f"vocabulary {config.vocab}",
        f"{len(corpus.train):,} tokens and {len(corpus.held_out):,} held out",
        f"{settings.tokens(corpus.context):,} tokens a step",
        f"device {trainer.device}",
        f"dtype {'fp32' if str(settings.dtype).endswith('float32') else 'bf16'}",
    ]
    return " · ".join(parts)


@contextmanager
def interrupted() -> Iterator[Callable[[], bool]]:
    """Whether Control-C was pressed; pressed again, it ends the program at once."""
    pressed = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def progress(plan: "Plan", done: int, quiet: bool) -> Iterator[Callable[["Record"], None]]:
    """Takes each step: a bar where stderr is a terminal, else a line for each held-out loss."""
    if quiet:
        yield lambda record: None
        return
    if not sys.stderr.isatty():
        yield (
            lambda record: None if record.held_out is None else click.echo(_line(record), err=True)
        )
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeLeft()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=plan.settings.steps, completed=done)

        def show(record: "Record") -> None:
            if record.held_out is not None:
                bar.console.print(_line(record), highlight=False)
            told = f"loss {record.loss:.3f} · {record.tokens_per_second:,.0f} tok/s"
            bar.update(task, completed=record.step, description=told)

        yield show


def _line(record: "Record") -> str:
    return (
        f"step {record.step} · loss {record.loss:.4f} · held out {record.held_out:.4f} · "
        f"{record.tokens_per_second:,.0f} tok/s"
    )

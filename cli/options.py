"""Options and arguments that several commands take, each said once."""

import logging
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.decorators import FC


def read_text(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Callback of a text argument, for which `-` stands for all of standard input, as it is.

    Bytes that are no UTF-8 become lone surrogates, which `Tokenizer.encode` reads.
    """
    if value != "-":
        return value
    if sys.stdin is None:
        raise click.BadParameter("standard input is closed.")
    return sys.stdin.buffer.read().decode("utf-8", "surrogateescape")


def finite(ctx: click.Context, param: click.Parameter, value: float) -> float:
    """Callback: the number, which must not be infinite, nor NaN, which every range lets through."""
    if not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number.")
    return value


MODEL = "FILE|FOLDER|NAME"

model = click.option(
    "-m",
    "--model",
    metavar=MODEL,
    help="Checkpoint: a file, a folder, a name on Hugging Face's hub, or stories, which comes "
    "with the package.",
)
tokenizer = click.option(
    "--tokenizer",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Tokenizer, instead of the one that lies with the checkpoint.",
)
rope_theta = click.option(
    "--rope-theta",
    type=click.FloatRange(min=1.0, min_open=True),
    help="Base of the RoPE frequencies, where the checkpoint has none or a wrong one.",
)


def read_scaling(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Callback of --rope-scaling: what `parse_scaling` takes."""
    if value is None:
        return None
    from llama2gpu.checkpoints.rope_config import parse_scaling
    from llama2gpu.errors import RequestError

    try:
        parse_scaling(value)
    except RequestError as error:
        raise click.BadParameter(f"{error}.") from None
    return value


rope_scaling = click.option(
    "--rope-scaling",
    metavar="TYPE:FACTOR",
    callback=read_scaling,
    help="Stretch RoPE and the context by a factor, in place of what the checkpoint says: "
    "linear:4, llama3:8 or yarn:4, say.",
)
norm_eps = click.option(
    "--norm-eps",
    type=click.FloatRange(min=0.0, max=1.0, min_open=True, max_open=True),
    help="Epsilon of RMSNorm, where the checkpoint has none or a wrong one.",
)


def dtype(text: str) -> Callable[[FC], FC]:
    """--dtype, of which `text` says what it is the type of."""
    kinds = click.Choice(["auto", "fp32", "fp16", "bf16"])
    text = f"{text}; auto keeps the stored one on a CPU."
    return click.option("--dtype", type=kinds, default="auto", show_default=True, help=text)


def kv_dtype(text: str) -> Callable[[FC], FC]:
    """--kv-dtype, of which `text` says what it does."""
    text = f"Type of cached keys and values{text}."
    kinds = click.Choice(["auto", "int8"])
    return click.option("--kv-dtype", type=kinds, default="auto", show_default=True, help=text)


context = click.option(
    "--ctx",
    "context",
    type=click.IntRange(1),
    help="Positions to use at most; what lies past the model's own context may make no sense.  "
    "[default: the model's context]",
)
no_kv_cache = click.option(
    "--no-kv-cache", is_flag=True, help="Recompute everything for each token."
)
prefill = click.option(
    "--prefill",
    type=click.Choice(["parallel", "sequential"]),
    default="parallel",
    show_default=True,
    help="Take the prompt at once, or one token at a time.",
)
chat_template = click.option(
    "--chat-template",
    metavar="NAME|FILE",
    help="llama2, llama3, vicuna, alpaca, mistral, plain (the bare text), one of the checkpoint's "
    "own by name, or a file of Jinja.  [default: the checkpoint's own, or that of its kind]",
)
threads = click.option(
    "--threads", type=click.IntRange(1, 1024), help="CPU threads to compute with."
)


def hush(ctx: click.Context, param: click.Parameter, value: bool) -> bool:
    """Callback of --quiet: until the command ends, what is logged is not told on stderr either."""
    if value:
        logger = logging.getLogger("llama2gpu")
        ctx.call_on_close(partial(logger.setLevel, logger.level))
        logger.setLevel(logging.ERROR)
    return value


quiet = click.option("-q", "--quiet", is_flag=True, callback=hush, help="Print nothing on stderr.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")

backend = click.option(
    "--backend",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="auto, triton, cupy, torch, numpy, or one that is plugged in (see `llama2gpu doctor`).",
)
device = click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="auto, cpu, cuda, cuda:N or mps.",
)
op = click.option(
    "--op",
    multiple=True,
    metavar="NAME=BACKEND",
    callback=lambda ctx, param, values: [split_pair(value) for value in values],
    help="Take one op from another backend; may be repeated.",
)


def split_pair(value: str) -> tuple[str, str]:
    """NAME=VALUE as a pair."""
    name, equals, rest = value.partition("=")
    if not (name and equals and rest):
        raise click.BadParameter(f"{value!r} is not of the form NAME=VALUE.")
    return name, rest


def read_bias(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> Any:
    """Callback of --logit-bias: token ids and what is added to their logits."""
    try:
        return {int(token): float(bias) for token, bias in map(split_pair, values)}
    except ValueError:
        raise click.BadParameter("give TOKEN=NUMBER, such as 13=-100.") from None


#: Parameter of `SamplingParams` → flags, type, default, help.
_SAMPLING: dict[str, tuple[list[str], Any, Any, str]] = {
    "max_tokens": (
        ["-n", "--max-tokens"],
        click.IntRange(-1),
        512,
        "New tokens at most; -1 sets no bound.",
    ),
    "temperature": (["-t", "--temperature"], click.FloatRange(0), 0.8, "0 is greedy."),
    "top_p": (
        ["-p", "--top-p"],
        click.FloatRange(0, 1, min_open=True),
        0.95,
        "Keep the likeliest tokens up to this mass.",
    ),
    "top_k": (["-k", "--top-k"], click.IntRange(0), 0, "Keep so many likeliest tokens; 0 is all."),
    "min_p": (
        ["--min-p"],
        click.FloatRange(0, 1),
        0.0,
        "Drop tokens below this share of the likeliest one's probability.",
    ),
    "repetition_penalty": (
        ["--repeat-penalty"],
        click.FloatRange(0, min_open=True),
        1.0,
        "Divide the logits of tokens seen before.",
    ),
    "presence_penalty": (
        ["--presence-penalty"],
        float,
        0.0,
        "Take from the logits of tokens generated before.",
    ),
    "frequency_penalty": (["--frequency-penalty"], float, 0.0, "The same, once for each time."),
    "seed": (
        ["--seed"],
        click.IntRange(0, 2**63 - 1),
        None,
        "Repeat a choice of tokens; --json tells which seed was drawn.",
    ),
}


def sampling(function: Any) -> Any:
    """All options that end up in `SamplingParams`."""
    extra = [
        click.option(
            "--sampler",
            type=click.Choice(["default", "llama2c"]),
            default="default",
            show_default=True,
            help="llama2c: that program's random numbers; -n then counts the prompt too.",
        ),
        click.option(
            "--stop", multiple=True, metavar="TEXT", help="End before this text; may be repeated."
        ),
        click.option("--ignore-eos", is_flag=True, help="Go on after the end-of-text token."),
        click.option(
            "--logit-bias", multiple=True, metavar="TOKEN=NUMBER", callback=read_bias,
            help="Add to the logit of a token; may be repeated.",
        ),
        click.option(
            "--logprobs", type=click.IntRange(0, 100),
            help="Report the log-probability of each token and of so many likeliest; with --json.",
        ),
    ]  # fmt: skip
    made = [
        click.option(*flags, name, type=kind, default=default, show_default=True, help=text)
        for name, (flags, kind, default, text) in _SAMPLING.items()
    ]
    for decorate in reversed(made + extra):
        function = decorate(function)
    return function


def sampling_values(values: dict[str, Any]) -> dict[str, Any]:
    """What the options of `sampling` say, as keywords of `SamplingParams`."""
    names = [*_SAMPLING, "sampler", "stop", "ignore_eos", "logit_bias", "logprobs"]
    asked = {name: values[name] for name in names}
    if asked["max_tokens"] == -1:
        asked["max_tokens"] = None
    return asked


#: What would drive a terminal, as it is shown there.
_SHOWN = {n: f"\\x{n:02x}" for n in (*range(32), *range(127, 160))} | {9: "\t", 10: "\n", 13: ""}


def write(text: str) -> None:
    """Text to stdout, at once; no model drives a terminal, which it is shown plain."""
    click.echo(text.translate(_SHOWN) if sys.stdout.isatty() else text, nl=False)

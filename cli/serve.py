"""`llama2gpu serve`: a model over HTTP."""

import os
import re
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from llama2gpu.cli import load_options, options
from llama2gpu.cli.run import load_model
from llama2gpu.errors import Llama2GPUError

#: What `llama2gpu[serve]` installs.
NEEDED = ("fastapi", "prometheus_client", "pydantic", "uvicorn")
#: The variable that holds the key.
KEY = "LLAMA2GPU_API_KEY"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@*]+")


class MissingExtraError(Llama2GPUError):
    """The packages of an extra are not installed."""


def read_key(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Callback of --api-key: a key that a header can hold; an empty variable opens nothing."""
    value = os.environ.get(KEY) if value is None else value
    if value == "":
        raise click.BadParameter(f"it is empty: give a key, or leave it out and unset {KEY}.")
    if value is not None and (value != value.strip() or not value.isprintable()):
        raise click.BadParameter("no client could send it: give visible characters alone.")
    return value


def read_origins(
    ctx: click.Context, param: click.Parameter, value: tuple[str, ...]
) -> tuple[str, ...]:
    """Callback of --cors: origins as browsers send them, or * for all."""
    origins = [origin.lower().removesuffix("/") for origin in value]
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise click.BadParameter(f"{origin!r} is no origin: give one like https://example.org.")
    return tuple(origins)


@click.command()
@load_options.loading
@options.chat_template
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen at; 0.0.0.0 is every one of this machine: set a key then.",
)
@click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True)
@click.option(
    "--api-key",
    envvar=KEY,
    metavar="KEY",
    callback=read_key,
    help="What clients must send as a bearer token. Other users of the machine can read it here: "
    f"rather set the variable {KEY}.",
)
@click.option("--name", help="What the API calls the model.  [default: as --model has it]")
@click.option(
    "--max-batch",
    type=click.IntRange(1, 4096),
    help="Sequences that run at once.  [default: 32]",
)
@click.option(
    "--pods", type=click.IntRange(1, 4096), help="llama.go's name of --max-batch, which it sets."
)
@click.option(
    "--max-pages",
    type=click.IntRange(1, 1 << 30),
    help="Pages of 64 tokens in the cache, which the sequences share; who finds none free waits.  "
    "[default: for --max-batch sequences of --ctx tokens, or what there is memory for]",
)
@click.option(
    "--queue",
    type=click.IntRange(0, 1_000_000),
    default=128,
    show_default=True,
    help="Sequences that may wait beside those; with more a request gets 429.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(1, 86400),
    callback=options.finite,
    default=600.0,
    show_default=True,
    help="Seconds that a request may take.",
)
@click.option(
    "--grace",
    type=click.FloatRange(0, 3600),
    callback=options.finite,
    default=30.0,
    show_default=True,
    help="Seconds that running requests have left at SIGTERM or Control-C.",
)
@click.option(
    "--max-body",
    type=click.IntRange(1024, 1 << 30),
    default=1 << 20,
    show_default=True,
    help="Bytes of a request at most.",
)
@click.option(
    "--cors",
    multiple=True,
    metavar="ORIGIN",
    callback=read_origins,
    help="Let pages of this origin call, such as https://example.org, or with a key of any (*); "
    "may be repeated.",
)
@click.option(
    "--jobs",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Where accepted jobs are kept.  [default: llama2gpu/jobs-PORT.sqlite of the user's state]",
)
@click.option(
    "--predict",
    type=click.IntRange(0, 1 << 30),
    default=512,
    show_default=True,
    help="Tokens of a job's answer at most.",
)
@click.option(
    "--temp",
    "temperature",
    type=click.FloatRange(0, 2),
    callback=options.finite,
    default=0.5,
    show_default=True,
    help="Temperature of jobs; 0 is greedy.",
)
@options.quiet
def command(
    host: str,
    port: int,
    name: str | None,
    max_batch: int | None,
    pods: int | None,
    jobs: Path | None,
    chat_template: str | None,
    quiet: bool,
    **rest: Any,
) -> None:
    """Serve a model over HTTP, by OpenAI's API.

    /v1/models, /v1/completions and /v1/chat/completions are OpenAI's, /jobs is llama.go's; there
    are /tokenize, /detokenize, /health, /ready and /metrics. Only this machine can call, unless
    --host says otherwise. The log is one JSON object a line on stderr; it holds no text of a prompt
    or an answer. SIGTERM and Control-C end the server once what runs has finished; Control-C again
    ends that too.
    """
    if pods is not None and max_batch is not None:
        raise click.UsageError("--pods and --max-batch exclude each other: they are the same.")
    if "*" in rest["cors"] and rest["api_key"] is None:
        raise click.UsageError(f"--cors '*' needs a key: set {KEY}, or name the origins.")
    missing = [package for package in NEEDED if find_spec(package) is None]
    if missing:
        lacks = " and ".join(missing)
        raise MissingExtraError(f"serve needs {lacks}: pip install 'llama2gpu[serve]'")
    from llama2gpu.chat import Chat
    from llama2gpu.server.job_store import JobStore
    from llama2gpu.server.logs import json_lines, log
    from llama2gpu.server.serve import bound_memory, listen, serve
    from llama2gpu.server.settings import Settings

    bound_memory()
    limits = {key: rest[key] for key in ("timeout", "grace", "max_body", "queue", "cors")}
    limits |= {key: rest[key] for key in ("api_key", "predict", "temperature")}
    settings = Settings(
        name=name or _name(rest["model"]),
        max_batch=pods or max_batch or 32,
        **limits,
    )
    with json_lines(quiet):
        if pods is not None:
            log(f"--pods {pods} is --max-batch {pods}")
        with listen(host, port) as found, closing(JobStore(jobs or _jobs_file(port))) as store:
            bounds: dict[str, Any] = {"max_sequences": settings.max_batch}
            bounds["max_pages"] = rest["max_pages"] or "fit"
            llama = load_model(rest, quiet=True, **bounds)
            if chat_template is not None:
                llama.chat = Chat.of(llama.checkpoint, llama.tokenizer, chat_template)
            chat = llama.chat
            pages, page = llama.engine.cache.pages, llama.engine.cache.page
            log("cache", pages=pages, tokens=pages * page, bytes=llama.engine.cache.nbytes)
            log("chat template", name=chat.name, why=chat.why, trained=chat.trained)
            serve(llama, settings, store, found)


def _name(model: str | None) -> str:
    """A model's name as the API has it: the Hub's, or that of its file or folder."""
    if model is None:
        return "stories"
    return Path(model).resolve().name if Path(model).exists() else model


def _jobs_file(port: int) -> Path:
    from llama2gpu.server.job_store import JobsError

    try:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    except RuntimeError as error:
        raise JobsError("there is no home folder to keep jobs in: give a file (--jobs)") from error
    return Path(state) / "llama2gpu" / f"jobs-{port}.sqlite"

"""`llama2gpu run`: text from a prompt."""

import dataclasses
import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llama2gpu.cli import bench_options, load_options, options, quant_options
from llama2gpu.cli.explain import lines, report

if TYPE_CHECKING:
    from llama2gpu.api import Generation, Llama


@click.command()
@click.argument("prompt", required=False, callback=options.read_text)
@load_options.loading
@options.sampling
@click.option("--prompt-file", type=click.Path(path_type=Path), help="Read the prompt from a file.")
@click.option("--show-prompt", is_flag=True, help="Print the exact prompt and its ids on stderr.")
@click.option("--explain", is_flag=True, help="Say on stderr what serves each op, and why.")
@click.option("--no-echo", is_flag=True, help="Leave the prompt out of the text.")
@bench_options.profile
@options.as_json
@options.quiet
def command(
    prompt: str | None,
    prompt_file: Path | None,
    profile: Path | None,
    show_prompt: bool,
    explain: bool,
    no_echo: bool,
    as_json: bool,
    quiet: bool,
    **rest: Any,
) -> None:
    """Generate text from PROMPT.

    The text streams to stdout as it is made; what runs and how fast it was goes to stderr.
    PROMPT - is standard input, an empty PROMPT starts from nothing, and without PROMPT the
    checkpoint's kind has a default one. Without --model it is the small storyteller that comes
    with the package, which --model stories names.
    """
    from llama2gpu.quantizer import left_dense
    from llama2gpu.tokenizer import well_formed

    if quiet and show_prompt:
        raise click.UsageError("--quiet and --show-prompt exclude each other.")
    if quiet and explain:
        raise click.UsageError("--quiet and --explain exclude each other.")
    if prompt is not None and prompt_file is not None:
        raise click.UsageError("PROMPT and --prompt-file exclude each other.")
    if rest["logprobs"] is not None and not as_json:
        raise click.UsageError("--logprobs needs --json.")
    if prompt_file is not None:
        prompt = prompt_file.read_bytes().decode("utf-8", "surrogateescape")
    bench_options.check_output(profile)
    asked = options.sampling_values(rest)
    llama = load_model(rest, quiet)
    from llama2gpu.measure.profile import profiling

    if prompt is None:
        prompt = llama.checkpoint.default_prompt
    prompt = well_formed(prompt)
    _warn_of_template(llama)
    generation = llama.stream(prompt, **asked)
    if not quiet:
        click.echo(headline(llama), err=True)
        if (note := left_dense(llama.outcomes)) is not None:
            click.echo(note, err=True)
    if explain:
        found = report(llama.backend, rest["backend"], llama.weight_kind)
        click.echo("\n".join(lines(found)), err=True)
    if show_prompt:
        ids = list(generation.sequence.request.prompt)
        click.echo(f"prompt: {prompt!r}\nids: {ids}", err=True)
    with profiling(profile, llama.backend):
        interrupted = _print(generation, prompt, as_json, no_echo)
    if as_json:
        click.echo(json.dumps(as_object(llama, generation), allow_nan=False))
    if not quiet:
        click.echo(_summary(llama, generation), err=True)
    bench_options.wrote(profile, quiet)
    if interrupted:
        click.get_current_context().exit(130)


def load_model(rest: dict[str, Any], quiet: bool, **more: Any) -> "Llama":
    """The model that the options of `run` name; more: other keywords of `api.load`."""
    from llama2gpu.cli.progress import loading, uninterrupted

    with uninterrupted():  # half an import is worse than none
        import torch

        from llama2gpu.api import DEFAULT_MODEL, load

    spec = quant_options.quant_spec(rest)
    if rest["threads"]:
        torch.set_num_threads(rest["threads"])
    with loading(quiet) as progress:
        return load(
            DEFAULT_MODEL if rest["model"] is None else rest["model"],
            tokenizer=rest["tokenizer"],
            backend=rest["backend"],
            device=rest["device"],
            dtype=rest["dtype"],
            ops=dict(rest["op"]),
            quant=spec or "none",
            calibration=rest["calibration"],
            context=rest["context"],
            rope_theta=rest["rope_theta"],
            rope_scaling=rest["rope_scaling"],
            norm_eps=rest["norm_eps"],
            kv_cache=not rest["no_kv_cache"],
            kv_dtype=rest["kv_dtype"],
            prefill=rest["prefill"],
            progress=progress,
            **more,
        )


def _warn_of_template(llama: "Llama") -> None:
    """A chat model that gets the bare prompt answers badly, and nothing else would tell why."""
    from llama2gpu.checkpoints.chat_template import chat_template_of
    from llama2gpu.errors import CheckpointError

    name = llama.checkpoint.path.name
    with suppress(CheckpointError):  # of a file that run has no need of
        if chat_template_of(llama.checkpoint):
            logging.getLogger("llama2gpu").warning(
                f"llama2gpu: {name!r} has a chat template, and run gives it the bare prompt; "
                "`llama2gpu chat` talks with it"
            )


def _print(generation: "Generation", prompt: str, as_json: bool, no_echo: bool) -> bool:
    """Streams the text; returns whether Control-C cut it short."""
    try:
        if as_json:
            generation.finish()
            return False
        if not no_echo:
            options.write(prompt)
        for piece in generation:
            options.write(piece)
    except KeyboardInterrupt:
        generation.cancel()
        return True
    finally:
        if not as_json:
            options.write("\n")
    return False


def headline(llama: "Llama") -> str:
    """What runs, and where."""
    import torch

    checkpoint, backend = llama.checkpoint, llama.backend
    parts = [
        f"{checkpoint.path.name} ({checkpoint.format}, {_short(checkpoint.config.parameters)})",
        f"backend {backend.label}",
        f"device {backend.device}",
        f"dtype {llama.dtype}",
    ]
    kinds = dict.fromkeys(outcome.kind for outcome in llama.outcomes if outcome.quantized)
    parts += [f"quantized to {' and '.join(kinds)}"] if kinds else []
    parts += ["cache int8"] if llama.engine.cache.dtype == torch.int8 else []
    return " · ".join(parts)


def _short(count: int) -> str:
    """12345678 → "12.3M parameters"."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size:
            return f"{count / size:.3g}{unit} parameters"
    return f"{count} parameters"


def _statistics(llama: "Llama", generation: "Generation") -> dict[str, Any]:
    from llama2gpu.measure.memory import peak_memory

    stats, first = llama.stats, generation.sequence.first_token_at
    steps_per_second = _rate(stats.decode_steps, stats.decode_seconds)
    nbytes = llama.engine.model.weights.nbytes
    return {
        "load_seconds": llama.load_seconds,
        "first_token_seconds": first and first - generation.sequence.added,
        "prefill_tokens": stats.prefill_tokens,
        "prefill_tokens_per_second": _rate(stats.prefill_tokens, stats.prefill_seconds),
        "decode_tokens": stats.decode_tokens,
        "decode_tokens_per_second": _rate(stats.decode_tokens, stats.decode_seconds),
        "weight_gigabytes_per_second": steps_per_second and steps_per_second * nbytes / 1e9,
        "cache_bytes": llama.engine.cache.nbytes,
        "peak_memory_bytes": peak_memory(llama.backend.device),
        "seed": generation.completion.seed,
        "backend": llama.backend.label,
        "device": str(llama.backend.device),
        "dtype": llama.dtype,
    }


def _rate(count: int, seconds: float) -> float | None:
    return count / seconds if seconds and count else None


def as_object(llama: "Llama", generation: "Generation") -> dict[str, Any]:
    """An answer and its statistics, for --json."""
    answer = dataclasses.asdict(generation.completion)
    del answer["seed"]
    logprobs = answer.pop("logprobs")
    if generation.sequence.request.params.logprobs is not None:
        answer["logprobs"] = [
            {"token": id, "logprob": logprob, "top": [list(pair) for pair in top]}
            for id, logprob, top in logprobs
        ]
    return {**answer, "stats": _statistics(llama, generation)}


def _summary(llama: "Llama", generation: "Generation") -> str:
    s = _statistics(llama, generation)

    def figure(value: float | None, unit: str) -> str:
        if value is None:
            return f"– {unit}"
        return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"

    memory = s["peak_memory_bytes"]
    parts = [
        f"load {figure(s['load_seconds'], 's')}",
        f"first token {figure(s['first_token_seconds'], 's')}",
        f"prefill {figure(s['prefill_tokens_per_second'], 'tok/s')}",
        f"decode {figure(s['decode_tokens_per_second'], 'tok/s')}",
        figure(s["weight_gigabytes_per_second"], "GB/s"),
        f"peak memory {figure(memory and memory / 2**20, 'MiB')}",
    ]
    return " · ".join(parts)

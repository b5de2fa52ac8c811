"""A server under load: `python -m bench.serve --help`. The clients run on the same machine."""

import asyncio
import json
import random
import sys
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from bench.serve_alone import alone
from bench.serve_client import Alone, Asked, Outcome, Prompts, ask, crowd, one_beside
from bench.serve_process import ROOM, Process
from llama2gpu.backends import resolve_device
from llama2gpu.cli import bench_options
from llama2gpu.measure.decode import machine
from llama2gpu.measure.subject import Subject

WORDS = ("dog", "cat", "bird", "tree", "friend", "went", "saw", "said", "Tim", "Sue", "park")
NUMBERS = [str(n) for n in range(300, 1000)]
SCALE = (1, 4, 16, 64)
#: Requests that share a beginning, and tokens of it where the context holds so many.
SHARING, SHARED = 8, 400


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--shape",
    type=click.Choice(bench_options.SHAPES),
    help="Random weights of this shape instead of the shipped model.",
)
@click.option("--quant", default="none", show_default=True, help="Of those weights.")
@click.option("--dtype", help="Of the weights.  [default: fp32; of a shape bf16]")
@click.option("--backend", default="auto", show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--seconds", default=60.0, show_default=True, help="Of the mixed load; 0: none.")
@click.option("--streams", default=64, show_default=True, help="Clients of the mixed load.")
@click.option("--tokens", default=128, show_default=True, help="Of the longest answers.")
@click.option("--scale-seconds", default=8.0, show_default=True, help="Of each number of streams.")
@click.option("--repeats", default=5, show_default=True, help="Of each measurement.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path))
def main(
    shape: str | None, quant: str, dtype: str | None, backend: str, device: str, seconds: float,
    streams: int, tokens: int, scale_seconds: float, repeats: int, output: Path | None,
) -> None:  # fmt: skip
    """Load a server and write what it did as one JSON object.

    First 1, 4, 16 and 64 readers for the rates, a long prompt that arrives beside 16 readers, and
    prompts that begin alike; then, all at once, readers, slow readers, clients that leave,
    malformed bodies, 10 MB bodies, wrong keys and prompts that are too long. In float32 every
    greedy answer must be the text that it is alone, without a server. Exits with 1 where an answer
    had a wrong status, text, usage or end, where anything is held or runs afterwards, where a
    common beginning was mostly computed anew, or where the server is not healthy; "failed" says
    which.
    """
    random.seed(7)
    dtype = dtype or ("fp32" if shape is None else "bf16")
    options = ["--dtype", dtype, "--backend", backend, "--device", device]
    options += ["--quant", quant] if shape is None else ["--shape", shape, "--quant", quant]
    subject = Subject(shape or "stories", backend, device, dtype, quant)
    with tempfile.TemporaryDirectory() as folder, Process(Path(folder), options, shape) as server:
        prompts = Prompts(WORDS if shape is None else NUMBERS, min(server.context // 2, 1000))
        result: dict[str, Any] = {"model": shape or "stories", "dtype": dtype, "quant": quant}
        result |= {"context": server.context, "machine": machine(resolve_device(device))}
        result["scale"] = _scale(server, prompts, tokens, scale_seconds, repeats)
        result["long_prompt"] = _long_prompt(server, prompts, repeats)
        result["shared_prompt"] = _shared(server, prompts)
        if seconds:
            texts = alone(subject, prompts.assortment(tokens))
            result["mixed"] = _mixed(server, texts, streams, seconds)
        result["exit_status"] = server.stop()
    result["failed"] = _failed(result)
    text = json.dumps(result, indent=1)
    if output is not None:
        output.write_text(text + "\n")
    click.echo(text)
    sys.exit(bool(result["failed"]))


def _failed(result: dict[str, Any]) -> list[str]:
    """Names of the figures that say that the server did wrong."""
    mixed = result.get("mixed", {})
    zero = ["wrong", "miscounted", "pages_used_after", "sequences_running_after"]
    zero += ["sequences_waiting_after"] + ["different_texts"] * (result["dtype"] == "fp32")
    found = [f"mixed.{name}" for name in zero if mixed.get(name)]
    found += ["mixed.healthy_after"] * (not mixed.get("healthy_after", True))
    found += ["scale.wrong"] * any(row["wrong"] for row in result["scale"])
    shared = result["shared_prompt"]
    if 2 * shared["tokens_computed"] > shared["tokens_sent"]:
        found.append("shared_prompt.tokens_computed")
    return found + ["exit_status"] * bool(result["exit_status"])


def _scale(
    server: Process, prompts: Prompts, tokens: int, seconds: float, repeats: int
) -> list[dict[str, Any]]:
    """Rates of 1, 4, 16 and 64 streams, which take turns; those of the median round."""
    asked = [Asked(prompts.one(4), tokens) for _ in range(64)]
    asyncio.run(crowd(server.port, 4, 1.0, asked, mixed=False))  # warm
    rounds: dict[int, list[dict[str, Any]]] = {count: [] for count in SCALE}
    for _ in range(repeats):
        for count in SCALE:
            outcomes, took = asyncio.run(crowd(server.port, count, seconds, asked, mixed=False))
            rounds[count].append({"streams": count, **_figures(outcomes, took)})
    found = []
    for count in SCALE:
        ranked = sorted(rounds[count], key=lambda round: round["tokens_per_second"])
        rates = [round["tokens_per_second"] for round in rounds[count]]
        wrong = sum(round["wrong"] for round in rounds[count])
        found.append({**ranked[len(ranked) // 2], "rounds": rates, "wrong": wrong})
    return found


def _long_prompt(server: Process, prompts: Prompts, repeats: int) -> dict[str, Any]:
    """What a prompt of three quarters of the context does to 16 streams beside it."""
    size = server.context * 3 // 4
    room = server.context - 32
    times, waits = [], []
    for _ in range(repeats):
        first, long = Asked(prompts.one(4), room), Asked(prompts.one(size), 1)
        ratio, outcome = asyncio.run(one_beside(server.port, 16, first, long))
        times.append(round(ratio, 2))
        waits.append(round(outcome.events[0] - outcome.began, 3))
    return {"prompt_words": size, "streams": 16, "time_per_token": times, "first_token_s": waits}


def _shared(server: Process, prompts: Prompts) -> dict[str, Any]:
    """How many tokens are computed of prompts that begin alike."""
    size = min(SHARED, server.context // 2)
    beginning = Prompts(prompts.vocabulary, 2 * size, seed=11)
    asked = [Asked(beginning.one(4, shared=True), 4) for _ in range(SHARING)]
    before = server.metric("prompt_tokens_total"), server.metric("prompt_tokens_reused")

    async def all_at_once() -> None:
        outcomes = await asyncio.gather(*(ask(server.port, "reader", one) for one in asked))
        if not all(outcome.done for outcome in outcomes):
            raise click.ClickException("a prompt of those that begin alike was refused")

    asyncio.run(all_at_once())
    sent = server.metric("prompt_tokens_total") - before[0]
    reused = server.metric("prompt_tokens_reused") - before[1]
    found = {"requests": SHARING, "tokens_sent": sent, "tokens_computed": sent - reused}
    return {"words_alike": size, **found}


def _mixed(
    server: Process, texts: dict[Asked, Alone], streams: int, seconds: float
) -> dict[str, Any]:
    """All kinds of clients at once, each answer held against what its request gives alone."""
    asked = list(texts)
    with server.watched_memory(max(seconds / 20, 1.0)) as memory:
        outcomes, took = asyncio.run(crowd(server.port, streams, seconds, asked, mixed=True))
    seen = Counter(f"{o.kind}: {o.status or 'closed'}" for o in outcomes)
    return {
        "seconds": round(took, 1),
        "streams": streams,
        **_figures([o for o in outcomes if o.kind == "reader"], took),
        "seen": dict(sorted(seen.items())),
        "wrong": sum(not o.right and not (o.status == 429 and streams > ROOM) for o in outcomes),
        "texts_compared": sum(o.status == 200 for o in outcomes),
        "different_texts": sum(o.differs(texts[o.asked]) for o in outcomes),
        "miscounted": sum(o.miscounts(texts[o.asked]) for o in outcomes),
        "memory_mb": [round(bytes / 1e6, 1) for bytes in memory],
        **server.rest(),
    }


def _figures(outcomes: list[Outcome], seconds: float) -> dict[str, Any]:
    """Rates and quantiles, in tokens a second and milliseconds; a gap is between two events."""
    first = [(o.events[0] - o.began) * 1e3 for o in outcomes if o.events]
    gaps = [(b - a) * 1e3 for o in outcomes for a, b in pairwise(o.events)]
    return {
        "requests": len(outcomes),
        "wrong": sum(not o.right for o in outcomes),
        "tokens_per_second": round(sum(o.tokens for o in outcomes) / seconds, 1),
        "first_token_ms": _quantiles(first),
        "token_ms": _quantiles(gaps),
    }


def _quantiles(values: list[float]) -> dict[str, float | None]:
    ranked = sorted(values)
    return {
        f"p{p}": round(ranked[min(len(ranked) * p // 100, len(ranked) - 1)], 2) if ranked else None
        for p in (50, 99)
    }


if __name__ == "__main__":
    main()

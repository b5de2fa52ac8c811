"""A server under load: `python -m bench.serve --help`. The clients run on the same machine."""

import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import torch

from bench.serve_client import KEY, Outcome, crowd
from llama2gpu.measure.decode import machine

ROOT = Path(__file__).resolve().parents[1]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--seconds", default=60.0, show_default=True, help="Of the mixed load.")
@click.option("--streams", default=64, show_default=True, help="Clients of the mixed load.")
@click.option("--scale-seconds", default=8.0, show_default=True, help="Of 1, 4, 16 and 64 streams.")
@click.option("--tokens", default=128, show_default=True, help="Of an answer.")
@click.option("--port", default=8499, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.argument("options", nargs=-1)
def main(
    seconds: float,
    streams: int,
    scale_seconds: float,
    tokens: int,
    port: int,
    as_json: bool,
    options: tuple[str, ...],
) -> None:
    """Load a server of the shipped model; OPTIONS, after --, are those of `llama2gpu serve`.

    First 1, 4, 16 and 64 readers for the rates; then, all at once, readers, slow readers, clients
    that leave, malformed bodies, 10 MB bodies, wrong keys and prompts that are too long. Exits with
    1 where an answer had a wrong status, pages are held afterwards, or the server is not healthy.
    """
    random.seed(7)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "llama2gpu", "serve", "--port", str(port), "-q"]
        command += ["--jobs", f"{folder}/jobs.sqlite", "--max-batch", "64", *options]
        server = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"LLAMA2GPU_API_KEY": KEY})
        try:
            _wait(server, port)
            result = _measure(server.pid, port, seconds, streams, scale_seconds, tokens)
        finally:
            server.terminate()
            result_status = server.wait(timeout=60)
    result["exit_status"] = result_status
    click.echo(json.dumps(result, indent=None if as_json else 1))
    failed = result["mixed"]["wrong"] or result["pages_used_after"] or not result["healthy_after"]
    sys.exit(bool(failed or result_status))


def _measure(
    pid: int, port: int, seconds: float, streams: int, scale_seconds: float, tokens: int
) -> dict[str, Any]:
    asyncio.run(crowd(port, 4, 1.0, tokens, mixed=False))  # warm
    scale = []
    for count in (1, 4, 16, 64):
        outcomes, took = asyncio.run(crowd(port, count, scale_seconds, tokens, mixed=False))
        scale.append({"streams": count, **_figures(outcomes, took)})
    before = _memory(pid)
    outcomes, took = asyncio.run(crowd(port, streams, seconds, tokens, mixed=True))
    mixed = {"seconds": took, **_figures([o for o in outcomes if o.kind == "reader"], took)}
    seen = Counter(f"{o.kind}: {o.status or 'closed'}" for o in outcomes)
    mixed |= {"seen": dict(sorted(seen.items())), "wrong": sum(not o.right for o in outcomes)}
    time.sleep(1)
    return {
        "machine": machine(torch.device("cpu")),
        "scale": scale,
        "mixed": mixed,
        "memory_bytes_before": before,
        "memory_bytes_after": _memory(pid),
        "pages_used_after": _metric(port, "pages_used"),
        "pages_after": _metric(port, "pages"),
        "sequences_after": _metric(port, "sequences_running") + _metric(port, "sequences_waiting"),
        "healthy_after": _get(port, "/health") is not None,
    }


def _figures(outcomes: list[Outcome], seconds: float) -> dict[str, Any]:
    """Rates and quantiles, in tokens a second and milliseconds; a gap is between two events."""
    first = [(o.events[0] - o.began) * 1e3 for o in outcomes if o.events]
    gaps = [(b - a) * 1e3 for o in outcomes for a, b in pairwise(o.events)]
    return {
        "requests": len(outcomes),
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


def _get(port: int, path: str) -> str | None:
    asked = urllib.request.Request(f"http://127.0.0.1:{port}{path}")
    asked.add_header("Authorization", f"Bearer {KEY}")
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return str(answer.read().decode())
    except (urllib.error.URLError, ConnectionError):
        return None


def _metric(port: int, name: str) -> float:
    for line in (_get(port, "/metrics") or "").splitlines():
        if line.startswith(f"llama2gpu_{name} "):
            return float(line.split()[1])
    raise click.ClickException(f"the server tells no llama2gpu_{name}")


def _memory(pid: int) -> int:
    """Bytes of a process that are in memory."""
    resident = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(resident) * os.sysconf("SC_PAGE_SIZE")


def _wait(server: subprocess.Popen[bytes], port: int) -> None:
    while _get(port, "/ready") is None:
        if server.poll() is not None:
            raise click.ClickException("the server did not start")
        time.sleep(0.2)


if __name__ == "__main__":
    main()

"""README's tables, made of the files in bench/results: `python bench/report.py` writes them.

Each stands between `<!-- table: NAME -->` and `<!-- end of table -->`.
"""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from llama2gpu.measure.model_result import ModelResult
from llama2gpu.measure.results import read_results

ROOT = Path(__file__).resolve().parents[1]
README, RESULTS = ROOT / "README.md", ROOT / "bench" / "results"

_MARKED = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(<!-- end of table -->\n)", re.DOTALL)


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; fail where README differs.")
def main(check: bool) -> None:
    """Write README's tables anew from bench/results."""
    before = README.read_text(encoding="utf-8")
    after = rewrite(before, RESULTS)
    if check and after != before:
        raise click.ClickException("README.md differs from bench/results: run bench/report.py")
    if not check:
        README.write_text(after, encoding="utf-8")


def rewrite(text: str, results: Path) -> str:
    """The text with every marked table made anew from a folder of results."""
    return _MARKED.sub(
        lambda found: found[1] + TABLES[found[2]](results) + found[4],
        text,
    )


def marked(text: str) -> list[str]:
    """Names of the marked tables, in order."""
    return [found[2] for found in _MARKED.finditer(text)]


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of Markdown, its first column to the left and the others to the right."""
    first, *rest = (f"| {' | '.join(cells)} |\n" for cells in (head, *rows))
    rule = "|---" + "|--:" * (first.count(" | ")) + "|\n"
    return first + rule + "".join(rest)


def quantized(results: Path) -> str:
    """What quantization costs the storyteller, by `llama2gpu eval --json`."""
    found = json.loads((results / "quality-stories.json").read_text(encoding="utf-8"))
    first, *others = found["rows"]
    head = ("weights", "perplexity", "change", "KL divergence, nats", "same top token")
    rows = [[*_quality(first)[:2], "", "", "", _quality(first)[-1]], *map(_quality, others)]
    return table((*head, "read a token"), rows)


def _quality(row: dict[str, Any]) -> list[str]:
    return [
        row["name"],
        f"{row['perplexity']:.4f}",
        f"{row['change']:+.2f} ± {row['change_error']:.2f} %",
        f"{row['divergence']:.5f}",
        f"{100 * row['agreement']:.2f} %",
        f"{row['weight_bytes'] / 1e6:.2f} MB",
    ]


def speed(results: Path) -> str:
    """Decode and prefill beside the machine's limits and llama.cpp, by `llama2gpu bench`."""
    decode = [ModelResult.read(row) for row in read_results(results / "decode-llama-1.1b-cpu.json")]
    load = {row["quant"]: row for row in read_results(results / "load-llama-1.1b-cpu.json")}
    (depth,) = {r.depth for r in decode}
    rows: dict[str, Callable[[ModelResult], str]] = {
        f"decode behind {depth} tokens, tok/s": lambda r: f"{r.median('decode_rate'):.1f}",
        "weights and cache read, GB/s": lambda r: (
            f"{r.median('decode_rate') * r.step_bytes / 1e9:.1f}"
        ),
        "share of the read peak": lambda r: f"{100 * r.read_share:.0f} %",
        f"prefill of {depth} tokens, tok/s": lambda r: f"{r.median('prefill_rate'):.0f}",
        "share of the bf16 matmul peak": lambda r: f"{100 * r.matmul_share:.0f} %",
        "peak memory of a load / weights": lambda r: f"{load[r.quant]['memory_ratio']:.2f}",
        "llama.cpp's file type": lambda r: r.peer.removeprefix("llama.cpp "),
        "decode, times llama.cpp's": lambda r: f"{r.peer_share('decode_rate'):.2f}",
        "prefill, times llama.cpp's": lambda r: f"{r.peer_share('prefill_rate'):.2f}",
    }
    head = ["", *(r.dtype if r.quant == "none" else r.quant for r in decode)]
    return table(head, ([name, *map(cell, decode)] for name, cell in rows.items()))


TABLES = {"quantized": quantized, "speed": speed}


if __name__ == "__main__":
    main()

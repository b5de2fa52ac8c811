"""README's tables as Markdown, each from files of a folder of results."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from llama2gpu.measure.model_result import ModelResult
from llama2gpu.measure.results import read_results

#: Kinds of weights in the order of columns, and their headings.
KINDS = {"dense": "bf16", "int8": "int8", "int4": "int4"}
#: Ops that read all weights of a layer, or the cache, and their rows, by what tells two uses apart.
USES = {
    ("qkv", ""): "qkv: RMSNorm, projection, RoPE, cache",
    ("project_add", "attention"): "project_add: output projection, residual",
    ("gate_up", ""): "gate_up: RMSNorm, both projections, SwiGLU",
    ("project_add", "feed-forward"): "project_add: down projection, residual",
    ("logits", ""): "logits: RMSNorm, head",
    ("attention", ""): "attention over the cache",
}


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of Markdown, its first column to the left and the others to the right."""
    first, *rest = (f"| {' | '.join(cells)} |\n" for cells in (head, *rows))
    rule = "|---" + "|--:" * (first.count(" | ")) + "|\n"
    return first + rule + "".join(rest)


def quantized(results: Path) -> str:
    """What quantization costs the storyteller, by `llama2gpu eval --json`."""
    first, *others = _json(results / "quality-stories.json")["rows"]
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
    decode = _models(results / "decode-llama-1.1b-cpu.json")
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


def kernels(results: Path) -> str:
    """Each op of the torch backend at one token, by `llama2gpu bench kernels --json`."""
    return _ops(_json(results / "kernels-llama-1.1b-cpu.json")["rows"])


def _ops(found: Sequence[dict[str, Any]]) -> str:
    """GB/s, share of the roof and times PyTorch's own of each backend at one token."""
    rows = {
        (row["backend"], row["op"], row["case"].partition(", ")[2], row["weight"]): row
        for row in found
        if row["m"] == 1
    }
    backends = list(dict.fromkeys(row["backend"] for row in found))
    head = ["one token", *(f"{h}: GB/s · share · ×" for h in KINDS.values())]
    lines = []
    for backend in backends:
        for use, said in USES.items():
            cells = [_op(rows.get((backend, *use, kind))) for kind in KINDS]
            name = said if len(backends) == 1 else f"{backend} {said}"
            lines += [[name, *cells]] if any(cells) else []
    return table(head, lines)


def _op(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    if not row["checked"]:
        return "wrong"
    share = "–" if row["share"] is None else f"{100 * row['share']:.0f} %"
    ratio = "–" if row["ratio"] is None else f"{row['ratio']:.1f}×"
    return f"{row['gbps']:.0f} · {share} · {ratio}"


def instructions(results: Path) -> str:
    """Instructions a weight on sm_90, by `llama2gpu kernels inspect --tokens 1 --json`."""
    found = _json(results / "instructions-llama2-7b.json")
    ways = {"default": "Triton", "cuda-c": "CUDA C"}
    rows = {
        (row["op"], row["case"].partition(", ")[2], row["variant"], row["weight"]): row
        for row in found
        if row["arch"] == "sm_90" and row["m"] == 1 and row["instr_per_weight"]
    }
    kinds = list(reversed(KINDS))
    head = ["op", "rows × columns", *(f"{way} {KINDS[k]}" for way in ways.values() for k in kinds)]
    lines = []
    for use, said in USES.items():
        one = rows[(*use, "default", "dense")]
        size = "" if use[0] == "attention" else f"{one['n']} × {one['k']}"
        cells = (rows.get((*use, way, kind)) for way in ways for kind in kinds)
        lines.append([said, size, *(f"{c['instr_per_weight']:.2f}" if c else "" for c in cells)])
    return table(head, lines)


def serving(results: Path) -> str:
    """Many streams at once on a CPU, by `python -m bench.serve`."""
    found = [_json(path) for path in sorted(results.glob("serve-*-cpu.json"))]
    if not found:
        raise FileNotFoundError(results / "serve-*-cpu.json")
    lines = []
    for one in found:
        form = one["dtype"] if one["quant"] == "none" else one["quant"]
        scale, name = one["scale"], f"{one['model']}, {form}"
        lines.append([f"{name}: tok/s of all", *(f"{x['tokens_per_second']:.0f}" for x in scale)])
        for key, said in (("token_ms", "time per token"), ("first_token_ms", "to the first")):
            cells = (f"{x[key]['p50']:.0f} · {x[key]['p99']:.0f}" for x in scale)
            lines.append([f"{said}, ms, p50 · p99", *cells])
    return table(["streams", *(str(x["streams"]) for x in found[0]["scale"])], lines)


def gpu(results: Path) -> str:
    """Decoding on a GPU by weights and backend, by `bench/gpu.sh`."""
    found = [r for p in sorted(results.glob("gpu-decode-*.json")) for r in _models(p)]
    if not found:
        raise FileNotFoundError(results / "gpu-decode-*.json")
    backends = list(dict.fromkeys(r.backend for r in found))
    cells = {(_weights(r), r.backend): _decoded(r) for r in found}
    head = [f"{found[0].model}, one token", *(f"{b}: tok/s · share" for b in backends)]
    weights = dict.fromkeys(_weights(r) for r in found)
    return table(head, ([w, *(cells.get((w, b), "") for b in backends)] for w in weights))


def _decoded(result: ModelResult) -> str:
    return f"{result.median('decode_rate'):.1f} · {100 * result.read_share:.0f} %"


def gpu_kernels(results: Path) -> str:
    """Each op of each backend at one token on a GPU, by `bench/gpu.sh`."""
    return _ops(_json(results / "gpu-kernels.json")["rows"])


def peers(results: Path) -> str:
    """Whole models beside other software on a CPU, by `bench/peers.py`."""
    return _peers(results / "peers-llama-1.1b-cpu.json")


def gpu_peers(results: Path) -> str:
    """The same on a GPU, and single kernels, by `bench/gpu.sh`."""
    return _peers(results / "gpu-peers.json")


def _peers(path: Path) -> str:
    """Speed of each, and ours divided by it; ours itself has no ratio."""
    lines = []
    for row in _rows(path):
        figures = {"decode_rate": "tok/s", "prefill_rate": "tok/s, prefill", "us": "µs"}
        for figure, unit in figures.items():
            values = [one[figure] for one in row["rounds"] if figure in one]
            if not values:
                continue
            what = "model" if row["bench"] == "peers" else row["bench"]
            size = "" if row["bench"] == "peers" else f" {row['n']} × {row['k']}, m {row['tokens']}"
            form = row["dtype"] if row["quant"] == "none" else row["quant"]
            found = row["ratios"].get(figure)
            ratio = (
                f"{found['median']:.2f} ({found['low']:.2f}–{found['high']:.2f})" if found else ""
            )
            speed = f"{median(values):,.{1 if figure == 'decode_rate' else 0}f} {unit}"
            lines.append([f"{what}{size}, {form}: {row['backend']}", speed, ratio])
    return table(["who", "speed", "ours ÷"], lines)


def _weights(result: ModelResult) -> str:
    return result.dtype if result.quant == "none" else result.quant


def _models(path: Path) -> list[ModelResult]:
    return [ModelResult.read(row) for row in _rows(path)]


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        raise FileNotFoundError(path)
    return read_results(path)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


#: Tables by the name in their marks.
TABLES: dict[str, Callable[[Path], str]] = {
    "quantized": quantized,
    "speed": speed,
    "serving": serving,
    "kernels": kernels,
    "instructions": instructions,
    "peers": peers,
    "gpu": gpu,
    "gpu_kernels": gpu_kernels,
    "gpu_peers": gpu_peers,
}

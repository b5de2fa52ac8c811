"""Why a backend was chosen and what serves each op, as `doctor` and `run --explain` print it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from llama2gpu.backends.base import Backend


def report(backend: "Backend", asked: str) -> dict[str, Any]:
    """What is known of a choice: `asked` is the name that was given, maybe "auto"."""
    from llama2gpu.backends import auto_candidates, auto_order, serving

    tried = auto_candidates(backend.device) if asked == "auto" else {}
    return {
        "chosen": {"backend": backend.label, "device": str(backend.device)},
        "rule": _rule(asked, auto_order(backend.device)),
        "ruled_out": {name: detail for name, (ok, detail) in tried.items() if not ok},
        "ops": serving(backend),
        "routes": {op: route._asdict() for op, route in backend.routes().items()},
    }


def lines(found: dict[str, Any]) -> Iterator[str]:
    """The report for a terminal."""
    chosen = found["chosen"]
    yield f"chosen    {chosen['backend']} on {chosen['device']}: {found['rule']}"
    for name, detail in found["ruled_out"].items():
        yield f"  not {name}: {detail}"
    ways: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for op, server in found["ops"].items():
        route = {} if server.startswith("borrowed") else found["routes"].get(op, {})
        named = op if server == "own" else f"{op} ({server})"
        ways.setdefault(tuple(route.items()), []).append(named)
    for way, ops in ways.items():
        yield f"  {', '.join(ops)}"
        for name, words in way:
            yield f"    {click.style(f'{name:<8}', dim=True)} {words}"


def _rule(asked: str, order: list[str]) -> str:
    if asked != "auto":
        return "asked for by name"
    if len(order) == 1:
        return "what auto takes on such a device"
    return f"the first of {', '.join(order)} that runs here"

"""Why a backend was chosen and what serves each op, as `doctor` and `run --explain` print it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from llama2gpu.backends.base import Backend


def report(backend: "Backend", asked: str, kind: str = "dense") -> dict[str, Any]:
    """What is known of a choice: `asked` is the name that was given, maybe "auto".

    kind: of the weights, as `choose_backend` takes it.
    """
    from llama2gpu.backends import auto_candidates, auto_order, serving
    from llama2gpu.backends.chosen import recall

    tried = auto_candidates(backend.device, kind) if asked == "auto" else {}
    measured = {name: found._asdict() for name, found in recall(backend.device).items()}
    return {
        "chosen": {"backend": backend.label, "device": str(backend.device)},
        "rule": _rule(asked, kind if kind in measured else "", auto_order(backend.device, kind)),
        "measured": measured,
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
    for kind, measured in found["measured"].items():
        rates = sorted(measured["rates"].items(), key=lambda pair: -pair[1])
        said = ", ".join(f"{name} {per_second(rate)} tok/s" for name, rate in rates)
        yield f"  measured {measured['date']}, {measured['model']} {kind}: {said}"
    ways: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for op, server in found["ops"].items():
        route = {} if server.startswith("borrowed") else found["routes"].get(op, {})
        named = op if server == "own" else f"{op} ({server})"
        ways.setdefault(tuple(route.items()), []).append(named)
    for way, ops in ways.items():
        yield f"  {', '.join(ops)}"
        for name, words in way:
            yield f"    {click.style(f'{name:<8}', dim=True)} {words}"


def per_second(rate: float) -> str:
    """A rate with three digits."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _rule(asked: str, measured: str, order: list[str]) -> str:
    """measured: the kind of weights that the order was measured with, if it was."""
    if asked != "auto":
        return "asked for by name"
    if measured:
        return f"the fastest with {measured} weights, as `llama2gpu kernels choose` measured"
    if len(order) == 1:
        return "what auto takes on such a device"
    return f"the first of {', '.join(order)} that runs here"

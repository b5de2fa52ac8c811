"""One backend with single ops borrowed from others, and who serves what."""

import copy
from collections.abc import Mapping

from llama2gpu.backends.base import FUSED, OPS, Backend, Prepared
from llama2gpu.quant import Dense, Weight


def composes(backend: Backend, op: str) -> bool:
    """Whether the backend leaves a fused op to the default body, which calls its primitives."""
    return op in FUSED and getattr(type(backend), op) is getattr(Backend, op)


def serving(backend: Backend) -> dict[str, str]:
    """Who serves each op: "own", "composed" of primitives, or "borrowed from NAME"."""

    def server(op: str) -> str:
        if op in backend.borrowed:
            return f"borrowed from {backend.borrowed[op].name}"
        return "composed" if composes(backend, op) else "own"

    return {op: server(op) for op in OPS}


def borrow(primary: Backend, others: Mapping[str, Backend]) -> Backend:
    """`primary`, but for the ops that `others` serve (`{op: backend}`).

    A fused op that the primary composes sees a borrowed primitive. A matrix is prepared by
    whoever reads it.
    """

    def prepare(weight: Weight, op: str) -> Prepared:
        # a lender computes in the type of the activations that it is handed
        lent = weight
        if isinstance(weight, Dense):
            lent = Dense(weight.data.to(primary.activation_dtype(weight.data.dtype)))
        if op in others:
            return others[op].prepare(lent, op)
        if composes(primary, op) and "linear" in others:
            return others["linear"].prepare(lent, "linear")
        return primary.prepare(weight, op)

    routed = copy.copy(primary)
    routed.borrowed = dict(others)
    for op, other in others.items():
        setattr(routed, op, getattr(other, op))
    routed.prepare = prepare  # type: ignore[method-assign]
    return routed

"""Backends with a fault planted: PyTorch's ops, one of which goes wrong in one layer."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from llama2gpu.backends.base import Batch, LayerCache
from llama2gpu.backends.torch import TorchBackend
from llama2gpu.measure.op_walk import Place

#: Changes an output [T, n] in place.
Fault = Callable[[Tensor], None]


def one(size: float) -> Fault:
    """Moves one number of each batch of several tokens, by `size` as `tolerance.error` has it."""

    def moved(out: Tensor) -> None:
        if len(out) > 1:
            row = out[-1]
            row[3] += size * max(float(row.square().mean().sqrt()), float(row[3].abs()))

    return moved


def every(size: float) -> Fault:
    """Moves every number, up and down by turns."""

    def moved(out: Tensor) -> None:
        scale = torch.maximum(out.square().mean(dim=1, keepdim=True).sqrt(), out.abs())
        signs = 1 - 2 * (torch.arange(out.shape[1]) % 2)
        out += size * scale * signs

    return moved


def scaled(out: Tensor) -> None:
    """A factor that is wrong."""
    out *= 1.5


class Faulty(TorchBackend):
    """Which layer an op is in, it tells by the matrix that was prepared for it."""

    name: ClassVar[str] = "faulty"
    place: ClassVar[Place | None] = None
    fault: ClassVar[Fault] = staticmethod(scaled)

    def __init__(
        self, device: torch.device, place: Place | None = None, fault: Fault | None = None
    ) -> None:
        super().__init__(device)
        self.wrong = self.place if place is None else place
        self.change = type(self).fault if fault is None else fault
        self.made: dict[str, list[Any]] = {}
        self.now = 0

    def prepare(self, weight: Any, op: str) -> Any:
        made = super().prepare(weight, op)
        self.made.setdefault(op, []).append(made)
        return made

    def embed(self, tokens: Tensor, weight: Any) -> Tensor:
        return self.spoilt(Place(None, "embed"), super().embed(tokens, weight))

    def qkv(
        self, x: Tensor, norm: Any, weight: Any, rope: Any, batch: Batch, cache: LayerCache
    ) -> Tensor:
        self.now = self.which("qkv", weight)
        q = super().qkv(x, norm, weight, rope, batch, cache)
        slots, page = batch.slots, cache.k.shape[2]
        at = (slots // page, slice(None), slots % page)
        for part, stored in (("keys", cache.k), ("values", cache.v)):
            stored[at] = self.spoilt(Place(self.now, "qkv", part), stored[at])
        return self.spoilt(Place(self.now, "qkv", "q"), q)

    def attention(self, q: Tensor, batch: Batch, cache: LayerCache) -> Tensor:
        return self.spoilt(Place(self.now, "attention"), super().attention(q, batch, cache))

    def project_add(self, a: Tensor, weight: Any, x: Tensor | None) -> Tensor:
        n = self.which("project_add", weight)
        place = Place(n // 2, "project_add", ("w_o", "w_2")[n % 2])
        return self.spoilt(place, super().project_add(a, weight, x))

    def gate_up(self, x: Tensor, norm: Any, weight: Any) -> Tensor:
        return self.spoilt(Place(self.now, "gate_up"), super().gate_up(x, norm, weight))

    def logits(self, x: Tensor, norm: Any, weight: Any) -> Tensor:
        return self.spoilt(Place(None, "logits"), super().logits(x, norm, weight))

    def layer(self, x: Tensor, w: Any, *rest: Any) -> Tensor:
        y = super().layer(x, w, *rest)
        return self.spoilt(Place(self.which("qkv", w.w_qkv), "layer"), y)

    def which(self, op: str, weight: Any) -> int:
        return next(n for n, made in enumerate(self.made[op]) if made is weight)

    def spoilt(self, place: Place, out: Tensor) -> Tensor:
        if place == self.wrong:
            out = out.clone()
            self.change(out.view(len(out), -1))
        return out

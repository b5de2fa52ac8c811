"""Whether an op's errors are more than rounding: held against the tolerance and against noise."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llama2gpu.measure.op_walk import Place, Track
from llama2gpu.ops.tolerance import Bound, bound, error

#: An error is no noise beyond so many times what was measured of it.
TIMES = 4
#: Errors of a layer's ops add up in the whole layer.
LAYER_OPS = 5

ORDER = (
    ("embed", ""),
    ("qkv", "q"),
    ("qkv", "keys"),
    ("qkv", "values"),
    ("attention", ""),
    ("project_add", "w_o"),
    ("gate_up", ""),
    ("project_add", "w_2"),
    ("layer", ""),
    ("logits", ""),
)
PHASES = ("prefill", "decode", "chunks")


@dataclass(frozen=True)
class Spot:
    """One output of one op in one layer and phase, on backend a beside backend b.

    phase: "prefill", a whole prompt; "decode", token by token; "chunks", both cut elsewhere.
    error: of a, from b. noise_a, noise_b: of each from itself. limit: of them all.
    """

    phase: str
    place: Place
    error: Bound
    noise_a: Bound
    noise_b: Bound
    limit: Bound

    @property
    def share(self) -> float:
        """The error as a share of the limit, the worse of the largest's and the rms's."""
        return share(self.error, self.limit)

    @property
    def verdict(self) -> str:
        """ "agrees", "differs", or "unsteady" where one of them differs from itself alone."""
        if self.share > 1:
            return "differs"
        noisy = max(share(self.noise_a, self.limit), share(self.noise_b, self.limit))
        return "unsteady" if noisy > 1 else "agrees"

    def fields(self) -> dict[str, Any]:
        """As JSON has it, with null for what is no number."""
        place = self.place._asdict() | {"part": self.place.part or None}
        found = {
            "phase": self.phase,
            **place,
            "verdict": self.verdict,
            "share": _number(self.share),
        }
        for name in ("error", "noise_a", "noise_b", "limit"):
            bounds: Bound = getattr(self, name)
            found[name] = {key: _number(value) for key, value in bounds._asdict().items()}
        return found

    @property
    def order(self) -> tuple[int, float, int]:
        """By which spots are sorted as they are computed."""
        place = self.place
        at = math.inf if place.op == "logits" else -1 if place.layer is None else place.layer
        return PHASES.index(self.phase), at, ORDER.index(place[1:])


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def share(measured: Bound, limit: Bound) -> float:
    """The larger of the two ratios; 0 / 0 is 0."""
    parts = zip(measured, limit, strict=True)
    return max(0.0 if m == 0 else m / most if most else math.inf for m, most in parts)


def limit_for(tolerance: Bound, noise_a: Bound, noise_b: Bound) -> Bound:
    """What an error may be: the tolerance, or four times the noise where that is more.

    A noise beyond the tolerance is believed where both have it: one backend's alone is a fault.
    """
    floors = (_floor(*both) for both in zip(tolerance, noise_a, noise_b, strict=True))
    return Bound(*(max(t, TIMES * n) for t, n in zip(tolerance, floors, strict=True)))


def _floor(tolerance: float, *noise: float) -> float:
    within = [n for n in noise if n <= tolerance]
    return max(within) if within else min(noise)


def tolerance_of(place: Place, dtype: torch.dtype, quantized: bool) -> Bound:
    """The tolerance of an op's output; of a layer in one call, that of its ops together."""
    if place.op == "layer":
        found = bound("project_add", dtype, quantized=quantized)
        return Bound(*(LAYER_OPS * x for x in found))
    return bound(place.op, dtype, quantized=quantized and place.op != "attention")


def row_error(out: Tensor, wanted: Tensor) -> Bound:
    """`error` with each row [n] measured by its own root mean square: one large hides no other."""
    reference = wanted.double()
    size = reference.square().mean(dim=1, keepdim=True).sqrt()
    size = torch.where(size > 0, size, 1.0)
    return error(out.double() / size, reference / size)


class Tracks(NamedTuple):
    """What both backends gave on the same inputs.

    a, b: of the walk, of the same again, and of other chunks. rounded: as in `Walk`. prompt: tokens
    of the first chunk of the first two.
    """

    a: Sequence[Track]
    b: Sequence[Track]
    rounded: tuple[Track, Track]
    prompt: int


def spots(tracks: Tracks, dtype: torch.dtype, quantized: bool) -> list[Spot]:
    """The verdict on every place and phase, in the order of computing.

    dtype: the type whose tolerance counts. quantized: the weights are. A layer in one call is left
    out where one of its ops is at fault.
    """
    found = list(_spots(tracks, dtype, quantized))
    guilty = {s.place.layer for s in found if s.place.op != "layer" and s.verdict != "agrees"}
    kept = (s for s in found if s.place.op != "layer" or s.place.layer not in guilty)
    return sorted(kept, key=lambda spot: spot.order)


def _spots(tracks: Tracks, dtype: torch.dtype, quantized: bool) -> Iterator[Spot]:
    a, b, prompt = tracks.a, tracks.b, tracks.prompt
    phases = {
        "prefill": (slice(prompt), a[:2]),
        "decode": (slice(prompt, None), a[:2]),
        "chunks": (slice(None), a[2:]),
    }
    for place, wanted in b[0].items():
        for phase, (rows, ways) in phases.items():
            noise = _noise(a, place, rows), _noise(b, place, rows)
            allowed = tolerance_of(place, dtype, quantized)
            if place in tracks.rounded[0]:
                both = (track[place][rows] for track in tracks.rounded)
                allowed = Bound(*map(sum, zip(allowed, row_error(*both), strict=True)))
            yield Spot(
                phase,
                place,
                _worst(row_error(track[place][rows], wanted[rows]) for track in ways),
                *noise,
                limit_for(allowed, *noise),
            )


def _noise(tracks: Sequence[Track], place: Place, rows: slice) -> Bound:
    first = tracks[0][place][rows]
    return _worst(row_error(other[place][rows], first) for other in tracks[1:])


def _worst(errors: Iterator[Bound]) -> Bound:
    largest, rms = zip(*errors, strict=True)
    return Bound(max(largest), max(rms))

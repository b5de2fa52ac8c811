"""How far an op's output may lie from the float64 reference."""

from typing import NamedTuple

import torch


class Bound(NamedTuple):
    """Largest error, and root mean square of the errors, both relative."""

    largest: float
    rms: float


_BOUNDS = {
    torch.float32: Bound(1e-5, 1e-6),
    torch.float16: Bound(5e-3, 7e-4),
    torch.bfloat16: Bound(4e-2, 5e-3),
}
#: Log-probabilities come from float32 logits whatever the type, and cancel near 0.
_SAMPLE = Bound(1e-4, 1e-4)
#: Ops that only move values: not a bit may change.
_EXACT = ("embed", "write_kv")


def bound(op: str, dtype: torch.dtype, *, quantized: bool = False) -> Bound:
    """The bound for an op in a type.

    quantized: its weights are, and may be rounded to the type once dequantized; that widens the
    tail, which the largest error is the end of, but hardly the root mean square.
    """
    if op == "sample":
        return _SAMPLE
    if op in _EXACT:
        return Bound(0.0, 0.0)
    found = _BOUNDS[dtype]
    return Bound(1.5 * found.largest, found.rms) if quantized else found


def error(out: torch.Tensor, reference: torch.Tensor) -> Bound:
    """|out − reference| / max(rms(reference), |reference|): its maximum and its root mean square.

    A NaN or an infinity that the reference lacks makes both infinite.
    """
    if out.shape != reference.shape:
        raise ValueError(f"shape {tuple(out.shape)} against {tuple(reference.shape)}")
    if out.numel() == 0:
        return Bound(0.0, 0.0)
    ref = reference.double()
    floor = ref.square().mean().sqrt()
    relative = (out.double() - ref).abs() / torch.maximum(floor, ref.abs()).clamp_min(1e-300)
    relative = relative.nan_to_num(nan=torch.inf)
    return Bound(float(relative.max()), float(relative.square().mean().sqrt()))

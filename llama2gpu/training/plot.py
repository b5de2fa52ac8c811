"""The loss curve of a training."""

import io
from collections.abc import Sequence

from llama2gpu.training.loop import Record

NAME = "loss.svg"


def loss_curve(records: Sequence[Record]) -> bytes | None:
    """An SVG of training and held-out loss by step, or None where matplotlib is not installed."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        return None
    with rc_context({"svg.hashsalt": "llama2gpu"}):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot([r.step for r in records], [r.loss for r in records], lw=0.8, label="training")
        held = [(r.step, r.held_out) for r in records if r.held_out is not None]
        axes.plot(*zip(*held, strict=True), marker="o", ms=3, label="held out")
        axes.set(xlabel="step", ylabel="loss, nats a token")
        axes.grid(alpha=0.3)
        axes.legend()
        written = io.BytesIO()
        figure.savefig(written, format="svg", metadata={"Date": None})
    return written.getvalue()

"""The roofline plot: each kernel's operations a second over its operations a byte, below the roofs.

Source: Williams, Waterman and Patterson, "Roofline" (2009). Needs matplotlib (the extra `plot`).
"""

import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from llama2gpu.errors import BackendError
from llama2gpu.measure.kernel_bench import Figures, Row
from llama2gpu.measure.roofs import Roofs

FORMATS = ("svg", "png")
COLORS = {"dense": "#1f77b4", "int8": "#d95f02", "int4": "#2e8b57"}
MARKERS = "osD^vP*X"
COLUMNS = 3
#: Points of text, and around a point in which no label lies.
LABEL, CLEAR = 7.5, 3.2
#: Where a label may lie: points from its own, at so many angles.
DISTANCES, ANGLES = (7, 10, 14, 19, 25, 32), 16


class Point(NamedTuple):
    """A kernel in the plot, and what is written beside it."""

    row: Row
    x: float
    y: float

    @property
    def label(self) -> str:
        """New tokens."""
        return str(self.row.m)


def require_matplotlib() -> None:
    """Raises `BackendError` where there is none."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise BackendError("plots need matplotlib: pip install 'llama2gpu[plot]'") from error


def points(rows: Sequence[Row]) -> list[Point]:
    """Kernels that are right and compute something."""
    found = []
    for row in rows:
        f = row.figures
        if f is not None and f.flops:
            found.append(Point(row, f.flops / f.bytes, _rate(f)))
    return found


def roofline(rows: Sequence[Row], roofs: Roofs, title: str, kind: str) -> bytes:
    """A file of the kind "svg" or "png": a panel for each op in each use, roofs drawn in all.

    Colors tell weights, markers backends, labels tokens; what may lie in cache is hollow.
    Raises `BackendError` without matplotlib or without a kernel to draw.
    """
    require_matplotlib()
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = points(rows)
    if not drawn:
        raise BackendError("nothing to plot: no kernel that computes was right")
    panels: dict[str, list[Point]] = {}
    for one in drawn:
        name = f"{one.row.op}, {one.row.use}" if one.row.use else one.row.op
        panels.setdefault(name, []).append(one)
    lines = math.ceil(len(panels) / COLUMNS)
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "llama2gpu", "font.size": 9}
    with rc_context(style):
        figure = Figure(figsize=(12, 3.1 * lines + 1.2), dpi=72, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(
            lines, min(COLUMNS, len(panels)), sharex=True, sharey=True, squeeze=False
        )
        spare = list(grid.flat)
        box = _limits(drawn, roofs)
        for axes, (name, inside) in zip(spare, panels.items(), strict=False):
            _panel(axes, name, inside, rows, roofs, box)
        for axes in spare[len(panels) :]:
            axes.set_visible(False)
        for axes in grid[:, 0]:
            axes.set_ylabel("operations a second")
        for column in range(grid.shape[1]):
            last = [axes for axes in grid[:, column] if axes.get_visible()][-1]
            last.set_xlabel("operations a byte")
            last.tick_params(labelbottom=True)
        figure.suptitle(title, fontsize=11)
        _legend(figure, drawn, rows, roofs)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for axes, inside in zip(spare, panels.values(), strict=False):
            _label(axes, inside)
        written = io.BytesIO()
        extra: dict[str, Any] = {"metadata": {"Date": None}} if kind == "svg" else {"dpi": 130}
        figure.savefig(written, format=kind, **extra)
    return written.getvalue()


def _rate(f: Figures) -> float:
    return 1e12 * f.tflops


def _limits(drawn: Sequence[Point], roofs: Roofs) -> tuple[float, float, float, float]:
    """Of both axes: all points, and the ridge, with room for labels."""
    low, high = min(p.x for p in drawn), max(p.x for p in drawn)
    top = max(*roofs.matmul.values(), *(p.y for p in drawn))
    ridge = top / roofs.memory
    return low / 2, max(high, ridge) * 3, min(p.y for p in drawn) / 3, top * 3


def _panel(
    axes: Any, name: str, inside: Sequence[Point], rows: Sequence[Row], roofs: Roofs,
    box: tuple[float, float, float, float],
) -> None:  # fmt: skip
    left, right, low, high = box
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(low, high))
    axes.set_title(name, fontsize=10, loc="left")
    axes.grid(alpha=0.2, lw=0.5)
    peak = max(roofs.matmul.values())
    for rate, style in ((roofs.read, "-"), (roofs.copy, "--")):
        ridge = peak / rate
        axes.plot([left, ridge], [left * rate, peak], style, color="0.35", lw=1)
    for i, rate in enumerate(roofs.matmul.values()):
        start = rate / roofs.memory
        axes.plot([start, right], [rate, rate], color="0.35", lw=1, ls=_dashes(i))
    for p in inside:
        marker = _markers(rows)[p.row.backend, p.row.dtype]
        color = COLORS[p.row.weight]
        cold = p.row.figures is not None and p.row.figures.cold
        edge = {"mec": "white", "mew": 0.5} if cold else {"mec": color, "mfc": "none", "mew": 0.8}
        axes.plot(p.x, p.y, marker, color=color, ms=5, **edge)


def _dashes(i: int) -> Any:
    return ("-", ":", "-.", (0, (5, 1)))[i % 4]


def _markers(rows: Sequence[Row]) -> dict[tuple[str, str], str]:
    """A marker for each backend with its type."""
    kinds = dict.fromkeys((row.backend, row.dtype) for row in rows)
    return {kind: MARKERS[i % len(MARKERS)] for i, kind in enumerate(kinds)}


def _legend(figure: Any, drawn: Sequence[Point], rows: Sequence[Row], roofs: Roofs) -> None:
    from matplotlib.lines import Line2D

    lines = [
        Line2D([], [], color="0.35", ls="-", label=f"read {roofs.read / 1e9:.0f} GB/s"),
        Line2D([], [], color="0.35", ls="--", label=f"copy {roofs.copy / 1e9:.0f} GB/s"),
    ]
    for i, (name, rate) in enumerate(roofs.matmul.items()):
        label = f"matmul {name} {rate / 1e12:.3g} TFLOP/s"
        lines.append(Line2D([], [], color="0.35", ls=_dashes(i), label=label))
    for weight in dict.fromkeys(p.row.weight for p in drawn):
        lines.append(Line2D([], [], color=COLORS[weight], lw=5, label=weight))
    shown = {(p.row.backend, p.row.dtype) for p in drawn}
    for kind, marker in _markers(rows).items():
        if kind in shown:
            label = f"{kind[0]}, {kind[1]}"
            lines.append(Line2D([], [], color="0.2", marker=marker, ls="", label=label))
    lines.append(Line2D([], [], color="0.2", marker="$16$", ls="", ms=9, label="new tokens"))
    if not all(p.row.figures and p.row.figures.cold for p in drawn):
        hollow = Line2D([], [], color="0.2", marker="o", mfc="none", ls="", label="in cache")
        lines.append(hollow)
    figure.legend(handles=lines, loc="outside lower center", ncols=6, frameon=False, fontsize=9)


def _label(axes: Any, inside: Sequence[Point]) -> None:
    """Beside each point its label, at the nearest place where nothing else lies."""
    from matplotlib.transforms import Bbox

    renderer = axes.figure.canvas.get_renderer()
    places = [axes.transData.transform((p.x, p.y)) for p in inside]
    taken = [Bbox.from_extents(x - CLEAR, y - CLEAR, x + CLEAR, y + CLEAR) for x, y in places]
    frame = axes.get_window_extent(renderer)
    for p, (x, y) in zip(inside, places, strict=True):
        text = axes.annotate(
            p.label, (p.x, p.y), xytext=(0, 0), textcoords="offset points", fontsize=LABEL,
            color=COLORS[p.row.weight], ha="center", va="center_baseline",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.2},
        )  # fmt: skip
        size = text.get_window_extent(renderer)
        best = min(
            (_cost(_moved(size, x, y, dx, dy), taken, frame, d), -dx, -dy)
            for d in DISTANCES
            for dx, dy in _around(d)
        )
        dx, dy = -best[1], -best[2]
        text.set_position((dx, dy))
        taken.append(_moved(size, x, y, dx, dy))
        if math.hypot(dx, dy) > DISTANCES[1]:
            axes.annotate(
                "", (p.x, p.y), xytext=(0.75 * dx, 0.75 * dy), textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": "0.6", "lw": 0.5, "shrinkA": 0},
            )  # fmt: skip


def _around(distance: float) -> list[tuple[float, float]]:
    turns = [2 * math.pi * i / ANGLES for i in range(ANGLES)]
    return [(1.2 * distance * math.cos(a), distance * math.sin(a)) for a in turns]


def _moved(size: Any, x: float, y: float, dx: float, dy: float) -> Any:
    """The text's box, its middle so far from a point."""
    from matplotlib.transforms import Bbox

    w, h = size.width / 2, size.height / 2
    return Bbox.from_extents(x + dx - w, y + dy - h, x + dx + w, y + dy + h)


def _cost(box: Any, taken: Sequence[Any], frame: Any, distance: float) -> float:
    """Overlaps above all, then the distance."""
    inside = frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 and box.y1 < frame.y1
    hits = sum(bool(box.overlaps(other)) for other in taken)
    return 1000.0 * (hits + 2 * (not inside)) + distance

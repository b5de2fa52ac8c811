"""The rows of `llama2gpu bench kernels` as a table and as comma-separated values."""

import csv
import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from llama2gpu.measure.kernel_bench import KernelBench, Row

#: PyTorch's ways, as short as a column is.
SHORT = {
    "F.scaled_dot_product_attention": "SDPA",
    "_weight_int8pack_mm": "int8pack",
    "_weight_int4pack_mm": "int4pack",
    "_weight_int4pack_mm_for_cpu": "int4pack",
}


def table(rows: "list[Row]", title: str, bench: "KernelBench") -> "Table":
    """One line for each row."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    roofs = bench.roof
    products = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in roofs.matmul.items())
    peaks = f"read {roofs.read / 1e9:.1f} GB/s, copy {roofs.copy / 1e9:.1f} GB/s"
    made = Table(
        title=f"{title}\n{peaks}, matmul {products} TFLOP/s (medians of the run)",
        title_style="bold", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False,
        padding=(0, 1, 0, 0), header_style="dim",
    )  # fmt: skip
    left = ("backend", "op", "weight", "roof", "PyTorch")
    headings = ("backend", "op", "weight", "m", "n × k", "µs", "GB/s", "TFLOP/s", "roof", "share",
                "PyTorch", "ratio")  # fmt: skip
    for heading in headings:
        made.add_column(heading, justify="left" if heading in left else "right", no_wrap=True)
    for row in rows:
        made.add_row(*map(Text, cells(row)))
    return made


def cells(row: "Row") -> list[str]:
    """What a line of the table says."""
    size = f"{row.n}×{row.k}" if row.k else str(row.n)
    first = [row.backend, row.op, row.weight, str(row.m), size]
    f = row.figures
    if f is None:
        return [*first, "wrong", *[""] * 6]
    share = "" if f.share is None else f"{f.share:.0%}"
    ratio = "" if f.ratio is None else f"{f.ratio:.2f}"
    speed = [f"{f.us:.1f}", f"{f.gbps:.1f}", f"{f.tflops:.3f}" if f.flops else ""]
    return [*first, *speed, f.bound, share, SHORT.get(f.baseline, f.baseline), ratio]


def as_lines(rows: list[dict[str, Any]]) -> str:
    """Comma-separated values, with a heading."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()

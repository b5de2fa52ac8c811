"""Rows of `bench kernels` in the form of a file of results, which `bench compare` reads."""

from dataclasses import dataclass

from llama2gpu.measure.kernel_bench import Row
from llama2gpu.measure.results import Named


@dataclass(frozen=True)
class KernelResult(Named):
    """A row that has figures (`results.NAME`); its three quartiles stand for rounds."""

    rounds: list[dict[str, float]]
    machine: dict[str, str]

    @classmethod
    def of(cls, row: Row, shape: str, machine: dict[str, str]) -> "KernelResult":
        """The row as it was measured with a shape on a machine."""
        f = row.figures
        assert f is not None
        times = (f.us_low, f.us, f.us_high)
        rounds = [{"microseconds": us, "read_peak": f.memory_roof} for us in times]
        sizes = f"{row.n}×{row.k}" if row.k else str(row.n)
        model = f"{shape} {row.op} {sizes}, {row.case}"
        form = row.backend, row.dtype, row.weight
        return cls("kernels", model, *form, row.context, 1, row.m, rounds, machine)

"""Quantized weights of every form, and the ways in which the torch backend multiplies them."""

import atexit
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch

from llama2gpu.backends import cpu_rows, prepare
from llama2gpu.backends.base import MATRIX_OPS, Probe
from llama2gpu.kernels import rows
from llama2gpu.ops.cases import CASES, Case
from llama2gpu.quant import Int4, Int8, Weight
from llama2gpu.quant.weight import int4 as pack

#: Name → columns of a group, None for the whole row, and what makes a matrix that weight.
FORMS: dict[str, tuple[int | None, Callable[[torch.Tensor], Weight]]] = {
    "int8": (None, lambda matrix: int8(matrix, matrix.shape[1])),
    "int8-g32": (32, lambda matrix: int8(matrix, 32)),
    "int4-g32": (32, lambda matrix: int4(matrix, 32)),
    "int4-g64": (64, lambda matrix: int4(matrix, 64)),
    "int4-g128": (128, lambda matrix: int4(matrix, 128)),
    "int4-zeros": (32, lambda matrix: int4(matrix, 32, zeros=True)),
    "int4-zeros-g128": (128, lambda matrix: int4(matrix, 128, zeros=True)),
    "int4-order": (32, lambda matrix: shuffled(int4(matrix, 32))),
}

#: Flags for other processors than the one at hand, which has all that they have.
ARCHITECTURES = {"rows-v3": "-march=x86-64-v3", "rows-v1": "-march=x86-64"}
#: How the torch backend may multiply on a CPU.
WAYS = ("rows", *ARCHITECTURES, "pytorch")


def int8(matrix: torch.Tensor, group: int) -> Int8:
    """To nearest, in one step: how well it is quantized does not matter here."""
    groups = matrix.view(len(matrix), -1, group)
    scales = (groups.abs().amax(-1) / 127).half()
    return Int8((groups / scales.float()[..., None]).round().to(torch.int8).view_as(matrix), scales)


def int4(matrix: torch.Tensor, group: int, *, zeros: bool = False) -> Int4:
    """Likewise; the first of the zero points is 1, the last 15."""
    groups = matrix.view(len(matrix), -1, group)
    low, high = groups.aminmax(dim=-1)
    scales = ((high - low) / 15 if zeros else groups.abs().amax(-1) / 7).half()
    middle = torch.full(scales.shape, 8.0)
    if zeros:
        middle = (-low / scales.float()).round().clamp(1, 15)
        middle[0, 0], middle[-1, -1] = 1, 15
    steps = groups / scales.float()[..., None] + middle[..., None]
    q = steps.round().clamp(0, 15).view_as(matrix)
    return pack(q, scales, middle if zeros else None)


def shuffled(weight: Int4) -> Int4:
    """The same values, which are those of other columns."""
    columns = weight.shape[1]
    order = torch.randperm(columns, generator=torch.Generator().manual_seed(columns))
    return replace(weight, order=order)


def columns_of(case: Case, op: str) -> int:
    """K of the matrix that an op reads."""
    return case.heads * case.head_dim if op == "project_add" else case.dim


def fits(form: str, columns: int) -> bool:
    """Whether a matrix of so many columns can have the form."""
    group = FORMS[form][0]
    return group is None or columns % group == 0


#: Few and many tokens of sequences of their own: from 65 on every kernel has a matrix dequantized.
BATCHES = (
    Case("3 tokens", cached=(2, 0, 17), new=(1, 1, 1), dim=128, heads=4, kv_heads=2, head_dim=32,
         hidden=96, vocab=260),
    Case("65 tokens", cached=(0,), new=(65,), dim=128, heads=2, kv_heads=2, head_dim=64,
         hidden=32, vocab=70),
)  # fmt: skip
#: What kernels with packed matrices are tested on, and the forms that fit.
FITTING = [
    pytest.param(case, form, id=f"{case.name.replace(' ', '-')}-{form}")
    for case in (*(c for c in CASES if c.name in ("decode", "llama-like", "wide heads")), *BATCHES)
    for form in FORMS
    if any(fits(form, columns_of(case, op)) for op in MATRIX_OPS)
]

#: How a library is looked for when nothing is remembered.
find_library = rows.library.__wrapped__
find_probe = cpu_rows.probe_rows.__wrapped__


@cache
def built_for(flag: str | None) -> rows.Library:
    """The row kernels for an architecture, in a cache of their own; None is this processor's."""
    with pytest.MonkeyPatch.context() as patch:
        if flag is not None:
            patch.setattr(rows, "_processor_flag", lambda: flag)
        patch.setenv("XDG_CACHE_HOME", str(cache_folder()))
        return find_library()


@cache
def cache_folder() -> Path:
    folder = Path(mkdtemp(prefix="llama2gpu-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@contextmanager
def taking(way: str) -> Iterator[None]:
    """Makes the torch backend multiply in one of `WAYS`; skips where it can't."""
    with pytest.MonkeyPatch.context() as patch:
        if way == "pytorch":
            patch.setattr(cpu_rows, "probe_rows", lambda: Probe(False, "left out"))
            yield
            return
        library = built_for(ARCHITECTURES.get(way))
        if library.bound is None:
            pytest.skip(library.detail)
        patch.setattr(rows, "library", lambda: library)
        probed = find_probe()
        assert probed.ok, probed.detail
        patch.setattr(cpu_rows, "probe_rows", lambda: probed)
        patch.setattr(prepare, "SMALL", 0)
        yield

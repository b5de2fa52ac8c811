"""A launch of a CUDA C kernel as a value, and the text that is compiled for it.

Needs neither CuPy nor a GPU: whoever runs launches is handed in (`Runner`), so that a test can run
them on a CPU and `kernels inspect` can compile them for a card that is not here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Protocol

import torch

FOLDER = Path(__file__).parent

#: Types as the sources name them.
TYPES = {
    torch.float32: "float",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int8: "signed char",
    torch.int32: "int",
}

#: An argument of a kernel: a pointer or, for None, a null pointer; `int`; `float`.
Argument = torch.Tensor | int | float | None


@dataclass(frozen=True)
class CudaLaunch:
    """A kernel with its grid and arguments.

    file: of this folder, without ".cu". kernel: its function, which is `extern "C"`. defines:
    macros that it is compiled with. grid: blocks along x, y and z. threads: of a block, along x.
    shared: bytes of dynamic shared memory of a block. arguments: in the order of the function's.
    """

    file: str
    kernel: str
    grid: tuple[int, int, int]
    threads: int
    arguments: tuple[Argument, ...] = field(repr=False)
    defines: Mapping[str, str | int] = field(default_factory=dict)
    shared: int = 0

    @property
    def empty(self) -> bool:
        """Whether there is nothing to launch."""
        return 0 in self.grid

    @property
    def options(self) -> tuple[str, ...]:
        """The macros as the compiler takes them."""
        return tuple(f"-D{name}={value}" for name, value in sorted(self.defines.items()))


class Runner(Protocol):
    """Runs a launch on the device of its tensors, in order with all that PyTorch runs there."""

    def __call__(self, launch: CudaLaunch) -> None:
        """See the class."""


@cache
def source(file: str) -> str:
    """The text of a kernel's file, with what it includes in the place of each `#include "…"`.

    One text, so that whoever caches what was compiled of it sees every change.
    """
    return _expanded(f"{file}.cu", set())


def _expanded(name: str, seen: set[str]) -> str:
    seen.add(name)
    lines = []
    for i, line in enumerate((FOLDER / name).read_text(encoding="utf-8").splitlines(), 1):
        found = re.fullmatch(r'\s*#include "([\w.]+)"\s*', line)
        if found is None:
            lines.append(line)
        elif found[1] not in seen:
            lines += [f'#line 1 "{found[1]}"', _expanded(found[1], seen), f'#line {i + 1} "{name}"']
    return "\n".join(lines) + "\n"

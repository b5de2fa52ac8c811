"""A launch as a value: run it here, or compile it for a device that is not here."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

#: Whether kernels run in Triton's interpreter, on the CPU: decided when `triton` is imported.
INTERPRETED = bool(knobs.runtime.interpret)

#: Pointer types by the type of what lies there.
_POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bool: "*i1",
}


@dataclass(frozen=True)
class Plan:
    """How a kernel is launched, which its shapes alone decide.

    grid: programs along each axis. constants: its constexpr arguments. pdl: launched before its
    predecessor has ended, where the architecture can; then the kernel waits for it by itself.
    """

    grid: tuple[int, ...]
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 1
    pdl: bool = False


@dataclass(frozen=True)
class Launch:
    """A kernel with its plan and its run-time arguments: tensors, numbers, or None.

    op: the op of the contract that it belongs to; variant: which of its ways.
    """

    kernel: Any
    plan: Plan
    arguments: Mapping[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        """The kernel's name."""
        return str(self.kernel.__name__)

    def run(self) -> None:
        """Launches it on the device of its tensors, or in the interpreter."""
        if 0 not in self.plan.grid:
            self.kernel[self.plan.grid](**self.arguments, **self.plan.constants, **self._options)

    def warm(self) -> Any:
        """The kernel as `run` would launch it, from Triton's cache on disk or compiled into it.

        It is Triton's own launcher, told not to launch, for the current device. So the key is that
        of `run`: the same source and options, and the same said of each argument, since a tensor on
        "meta" begins at 0, a multiple of 16 as wherever PyTorch allocates.
        """
        plan = self.plan
        return self.kernel.run(
            grid=plan.grid, warmup=True, **self.arguments, **plan.constants, **self._options
        )

    @property
    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {
            "num_warps": self.plan.num_warps,
            "num_stages": self.plan.num_stages,
        }
        if not INTERPRETED:
            options["enable_fp_fusion"] = True  # off by default from Triton 3.10 on
            if self.plan.pdl:
                options["launch_pdl"] = True
        return options

    def compile(self, target: GPUTarget) -> Any:
        """The compiled kernel, as the launcher of a device of that kind would make it.

        Needs no device. The run-time launcher specializes integers: 1 becomes a constant, multiples
        of 16 are known to be; tensors are taken to begin at multiples of 16 bytes.
        """
        signature, constants, attrs = {}, dict(self.plan.constants), {}
        for i, name in enumerate(self.kernel.arg_names):
            if name in constants:
                signature[name] = "constexpr"
                continue
            value = self.arguments[name]
            kind = _kind(value)
            signature[name] = kind
            if kind == "constexpr":
                constants[name] = value
            elif kind.startswith("*") or (isinstance(value, int) and value % 16 == 0):
                attrs[(i,)] = [["tt.divisibility", 16]]
        source = ASTSource(self.kernel, signature, constants, attrs)
        options: dict[str, Any] = {
            "num_warps": self.plan.num_warps,
            "num_stages": self.plan.num_stages,
            "enable_fp_fusion": True,
        }
        if self.plan.pdl and target.backend == "cuda" and int(target.arch) >= 90:
            options["launch_pdl"] = True
        return triton.compile(source, target=target, options=options)


def _kind(value: Any) -> str:
    """The type of a run-time argument in a signature."""
    if isinstance(value, torch.Tensor):
        return _POINTERS[value.dtype]
    if value is None or value is True or value is False or value == 1:
        return "constexpr"
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(1 << 31) <= value < 1 << 31 else "i64"


_record: ContextVar[list[Launch] | None] = ContextVar("_record", default=None)


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Collects the launches of the block instead of running them, on tensors of any device.

    On device "meta" an op so says what it would launch, without memory.
    """
    launches: list[Launch] = []
    token = _record.set(launches)
    try:
        yield launches
    finally:
        _record.reset(token)


def launch(kernel: Any, plan: Plan, **arguments: Any) -> None:
    """Launches a kernel by its plan, or records the launch (`recording`)."""
    made, launches = Launch(kernel, plan, arguments), _record.get()
    if launches is None:
        made.run()
    else:
        launches.append(made)

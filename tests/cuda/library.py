"""Kernels that were compiled for this CPU, their parameters, and arguments that fit them."""

import ctypes
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llama2gpu.kernels.cuda import Argument

#: What a parameter may point to, and the tensors that are that; pointers to others take any.
POINTED: dict[str, tuple[torch.dtype, ...]] = {
    "float": (torch.float32,),
    "fp16": (torch.float16,),
    "bf16": (torch.bfloat16,),
    "double": (torch.float64,),
    "bool": (torch.bool,),
    "char": (torch.int8,),
    "signed char": (torch.int8,),
    "unsigned char": (torch.uint8, torch.bool),
    "int": (torch.int32,),
    "unsigned int": (torch.int32, torch.uint32),
    **dict.fromkeys(("long int", "long", "long long int", "long long"), (torch.int64,)),
    **dict.fromkeys(("long long unsigned int", "unsigned long long"), (torch.int64,)),
}


@dataclass(frozen=True)
class Parameter:
    """Of a kernel: its type as the compiler writes it; that of what it points to, or None."""

    name: str
    type: str
    pointed: str | None
    constant: bool

    @classmethod
    def of(cls, name: str, type_name: str) -> "Parameter":
        """type_name: as a compiler writes it."""
        constant, spare = type_name.startswith("const "), type_name.removeprefix("const ")
        pointed = spare.removesuffix("*").rstrip() if spare.endswith("*") else None
        return cls(name, type_name, pointed, constant)

    def refusal(self, argument: Argument) -> str | None:
        """Why it does not take an argument, or None."""
        if self.pointed is not None:
            if argument is None:
                return None
            if not isinstance(argument, torch.Tensor):
                return f"is a pointer, not {argument!r}"
            wanted = POINTED.get(self.pointed)
            if argument.device.type != "cpu":
                return f"is on {argument.device}"
            return f"is {argument.dtype}" if wanted and argument.dtype not in wanted else None
        if self.type in ("int", "unsigned int"):
            if not isinstance(argument, int):
                return f"is an integer, not {argument!r:.60}"
            return None if -(1 << 31) <= argument < 1 << 31 else f"cannot hold {argument}"
        if self.type == "float":
            return None if isinstance(argument, float) else f"is a float, not {argument!r:.60}"
        return "is of a type that no launch hands over"

    def value(self, argument: Any) -> Any:
        """An argument that is no tensor, as C has it."""
        if self.pointed is not None:
            return ctypes.c_void_p(argument)
        return ctypes.c_float(argument) if self.type == "float" else ctypes.c_int(argument)


@dataclass(frozen=True)
class Kernel:
    """What is loaded of a kernel: addresses of functions, and its parameters."""

    call: int
    statics: int
    parameters: tuple[Parameter, ...]

    def refusal(self, arguments: tuple[Argument, ...]) -> str | None:
        """Why it does not take the arguments, or None."""
        if len(arguments) != len(self.parameters):
            return f"takes {len(self.parameters)} arguments, not {len(arguments)}"
        for i, (parameter, argument) in enumerate(zip(self.parameters, arguments, strict=True)):
            if why := parameter.refusal(argument):
                return f"argument {i} ({parameter.type} {parameter.name}) {why}"
        return None


class Library:
    """The kernels of a file."""

    def __init__(self, path: Path) -> None:
        self._loaded = ctypes.CDLL(str(path))
        self._kernels: dict[str, Kernel] = {}

    def kernel(self, name: str) -> Kernel | None:
        """None: it has no kernel of that name."""
        if name not in self._kernels:
            if not hasattr(self._loaded, f"{name}_call"):
                return None
            call, statics = (
                ctypes.cast(self._loaded[f"{name}_{part}"], ctypes.c_void_p).value or 0
                for part in ("call", "statics")
            )
            self._kernels[name] = Kernel(call, statics, tuple(self._parameters(name)))
        return self._kernels[name]

    def _parameters(self, kernel: str) -> list[Parameter]:
        names: Callable[[], bytes] = self._text(f"{kernel}_names")
        type_of: Callable[[int], bytes] = self._text(f"{kernel}_parameter")
        found = []
        for i, name in enumerate(names().decode().split()):
            written = re.search(r"T = ([^;\]]*)", type_of(i).decode())
            assert written is not None
            found.append(Parameter.of(name, written[1].replace(" *", "*")))
        return found

    def _text(self, function: str) -> Callable[..., bytes]:
        found = self._loaded[function]
        found.restype = ctypes.c_char_p
        return found

"""Random arguments for the ops that read a matrix, in sets whose matrices differ."""

import copy
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import torch

from llama2gpu.backends.base import Backend, Batch
from llama2gpu.measure.kernel_work import Work, meta_arguments


def real_arguments(
    work: Work, backend: Backend, device: torch.device, sets: int, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """So many sets of a matrix op's arguments by name; all share everything but the matrix.

    backend: a Triton backend on device "meta". Nothing is zero: a product with zeros takes less
    power, and so less time. Outputs are about 1, as activations are.
    """
    random = torch.Generator(device).manual_seed(seed)
    arguments = meta_arguments(work, backend)
    weight = arguments.pop("weight")
    shared = {name: _filled(value, random) for name, value in arguments.items()}
    for _ in range(sets):
        matrix = copy.copy(weight)
        matrix.packed = _matrix(weight.packed, random)
        yield {**shared, "weight": matrix}


def _filled(value: Any, random: torch.Generator) -> Any:
    """The value with each tensor in it random, or counting up where it says what lies where."""
    if isinstance(value, torch.Tensor):
        return _drawn(value, random)
    if isinstance(value, Batch):
        named = {field.name: getattr(value, field.name) for field in fields(value)}
        places: dict[str, Any] = {
            name: torch.arange(x.numel(), dtype=x.dtype, device=random.device).view(x.shape)
            for name, x in named.items()
            if isinstance(x, torch.Tensor)
        }
        return replace(value, **places)
    if isinstance(value, tuple):  # a norm, the RoPE table, the cache
        return type(value)(*(_filled(part, random) for part in value))
    return value


def _matrix(packed: Any, random: torch.Generator) -> Any:
    """One whose rows times a vector of ones' size are of ones' size."""
    data, factor = _drawn(packed.data, random), packed.shape[1] ** -0.5
    if packed.scales is None:
        return replace(packed, data=data.mul_(factor))
    spread = 2**packed.bits / 12**0.5  # of values that are equally likely
    return replace(packed, data=data, scales=_drawn(packed.scales, random).mul_(factor / spread))


def _drawn(x: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    if x.is_floating_point():
        return torch.randn(x.shape, dtype=x.dtype, device=random.device, generator=random)
    return torch.randint(  # packed words
        -(1 << 31), (1 << 31) - 1, x.shape, dtype=x.dtype, device=random.device, generator=random
    )

"""What to ask for instead, where a model does not fit; and a load that stops before it fails."""

import os
from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

import torch

from llama2gpu.backends.base import Backend
from llama2gpu.cache import KVCache
from llama2gpu.checkpoints import Checkpoint
from llama2gpu.errors import RequestError
from llama2gpu.memory import free_memory
from llama2gpu.model import Model
from llama2gpu.plan import Need, Plan, Planner, text_of
from llama2gpu.quant import QuantSpec
from llama2gpu.quant.spec import parse_spec

#: An environment variable that lets a load go on, whatever the plan says.
NO_PLAN = "LLAMA2GPU_NO_PLAN"
#: The shortest context that is proposed, and what a load without --ctx must have room for.
LEAST = 512
#: How much of the memory that is free beside the weights a cache takes that is to fit.
SHARE = 0.9
#: How far the weights in memory may exceed those in the file, where nothing is looked at closely.
AMPLE = 2.0


class Change(NamedTuple):
    """Flags that would fit, and what the model then takes."""

    flags: str
    total: int


def changes(planner: Planner, need: Need, free: int) -> list[Change]:
    """Changes that make it fit: one flag where that is enough, else a few, else for less."""
    for stage in (_one_flag, _several, _for_less):
        found = [change for change in stage(planner, need, free) if change.total <= free]
        if found:
            return found
    return []


def _one_flag(planner: Planner, need: Need, free: int) -> Iterator[Change]:
    for other in _quantized(planner):
        yield _change(other, need, need)
    if need.kv_dtype != torch.int8:
        yield _change(planner, need, need._replace(kv_dtype=torch.int8))
    for asked in _shorter(planner, need, free), _fewer(planner, need, free):
        if asked is not None:
            yield _change(planner, need, asked)


def _several(planner: Planner, need: Need, free: int) -> Iterator[Change]:
    for other in _quantized(planner):
        yield _change(other, need, need._replace(kv_dtype=torch.int8))


def _for_less(planner: Planner, need: Need, free: int) -> Iterator[Change]:
    least = Need(min(need.context, LEAST), 1, torch.int8)
    for other in _quantized(planner) if planner.spec is None else (planner,):
        asked = _shorter(other, least._replace(context=need.context), free) or least
        yield _change(other, need, asked)


def _change(planner: Planner, need: Need, asked: Need) -> Change:
    flags = ["--kv-dtype int8"] if asked.kv_dtype != need.kv_dtype else []
    flags += [f"--ctx {asked.context}"] if asked.context != need.context else []
    flags += [f"--batch {asked.batch}"] if asked.batch != need.batch else []
    spec = planner.spec
    quant = []
    if spec is not None and planner.proposed:
        quant = [f"--quant {spec.kind}" + " --quant-head" * spec.head]
    return Change(" ".join([*quant, *flags]), planner.plan(asked).total)


def _shorter(planner: Planner, need: Need, free: int) -> Need | None:
    """The longest context that fits, in powers of two; None where none does."""
    value = 1 << max(need.context - 1, 1).bit_length() - 1
    while value >= LEAST:
        if planner.plan(need._replace(context=value)).total <= free:
            return need._replace(context=value)
        value //= 2
    return None


def _fewer(planner: Planner, need: Need, free: int) -> Need | None:
    """The most sequences that fit; None where not one does."""

    def fits(batch: int) -> bool:
        return planner.plan(need._replace(batch=batch)).total <= free

    batch = bisect_left(range(1, need.batch), True, key=lambda n: not fits(n))
    return need._replace(batch=batch) if batch else None


def _quantized(planner: Planner) -> Iterator[Planner]:
    """The same model with fewer bits, where it is not quantized yet."""
    if planner.spec is None and planner.checkpoint.quantization is None:
        for kind in ("int8", "int4", "int4+head"):
            yield planner.with_spec(parse_spec(kind))


def shortage(planner: Planner, need: Need, plan: Plan, free: int) -> str:
    """Why it does not fit, and what would, in a line."""
    parts = [f"{kind} weights {text_of(count)}" for kind, count in plan.weights.items()]
    parts += [f"cache {text_of(plan.cache)}", f"scratch {text_of(plan.scratch)}"]
    other = [f"{c.flags} takes {text_of(c.total)}" for c in changes(planner, need, free)]
    mend = "; ".join(other) or "take a smaller model"
    return (
        f"{planner.checkpoint.path.name} takes {text_of(plan.total)} ({', '.join(parts)}), but "
        f"{planner.backend.device} has {text_of(free)} free: {mend}"
    )


def check_memory(
    checkpoint: Checkpoint, backend: Backend, dtype: torch.dtype, spec: QuantSpec | None,
    need: Need,
) -> None:  # fmt: skip
    """Raises `RequestError` where a model can't fit, with what it takes and what would fit.

    Where there is ample room nothing is looked at closely, and where `NO_PLAN` is set nothing at
    all.
    """
    free = free_memory(backend.device)
    if free is None or os.environ.get(NO_PLAN):
        return
    planner = Planner(checkpoint, backend, dtype, spec)
    stored = sum(info.nbytes for info in checkpoint.tensors())
    dense = checkpoint.config.parameters * dtype.itemsize
    if AMPLE * max(stored, dense) + planner.cache(need) + planner.scratch(need) < free:
        return
    plan = planner.plan(need)
    if plan.total > free:
        raise RequestError(f"{shortage(planner, need, plan, free)}; {NO_PLAN}=1 tries it anyway")


def cache_pages(
    model: Model, kv_dtype: torch.dtype | None, sequences: int, asked: int | None
) -> int:
    """Pages of a cache that never grows.

    asked: what is taken if it fits; None: enough for so many sequences of the whole context, or
    what there is memory for. Raises `RequestError`.
    """
    device = model.backend.device
    cache = KVCache(model.config, 0, kv_dtype or model.activations, device)
    each, free = cache.token_bytes * cache.page, free_memory(device)
    if asked is None:
        wanted = sequences * cache.pages_for(model.context)
        return wanted if free is None else max(min(wanted, int(SHARE * free) // each), 1)
    if free is not None and asked * each > free:
        most = max(int(SHARE * free) // each, 1)
        raise RequestError(
            f"{asked} pages of the cache take {text_of(asked * each)}, but {device} has "
            f"{text_of(free)} free: ask for {most} or fewer (--max-pages)"
        )
    return asked

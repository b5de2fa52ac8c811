"""Whether an op's result on its timed inputs is right: rows of it against the float64 reference."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llama2gpu.backends.base import Backend, LayerCache
from llama2gpu.backends.numpy import NumpyBackend
from llama2gpu.measure.kernel_work import Work
from llama2gpu.ops.tolerance import Bound, bound, error
from llama2gpu.quant import Weight

#: Rows of a matrix, and tokens of an embedding, that are computed again.
ROWS = 192
#: Scores of attention, at most, unless one key-value head has more.
SCORES = 1 << 23

Arguments = dict[str, Any]


def problem(
    work: Work, backend: Backend, arguments: Arguments, weight: Weight | None, seed: int = 0
) -> str:
    """What is wrong with the op's result on these arguments; "" where it is right.

    weight: the matrix in `arguments`, before it was prepared. All of the result must be finite, and
    a random part of it within `ops.tolerance` of the reference in float64; a quantized cache may be
    rounded to the type once dequantized, as weights may.
    """
    cache: Any = arguments["cache"] if work.op in ("qkv", "write_kv") else ()
    before = [x if x is None else x.clone() for x in cache]
    returned = getattr(backend, work.op)(**arguments)
    if before and _strayed(cache, before, _slots(arguments["batch"].slots, cache)):
        return "it writes to slots of the cache that are not its tokens'"
    outputs = list(returned) if isinstance(returned, tuple) else [returned]
    if any(x is not None and x.is_floating_point() and not x.isfinite().all() for x in outputs):
        return "a result is not finite"
    if work.op == "logits" and outputs[0].dtype.itemsize < 4:
        return f"its type is {outputs[0].dtype}, not at least torch.float32"
    random = torch.Generator().manual_seed(seed)
    for found, wanted, real in _pairs(work, arguments, outputs, weight, random):
        if wrong := _compared(work, found, wanted, real):
            return wrong
    return ""


def _compared(work: Work, found: Tensor, wanted: Tensor, real: torch.dtype) -> str:
    if found.shape != wanted.shape:
        return f"its shape is {tuple(found.shape)}, not {tuple(wanted.shape)}"
    if not found.is_floating_point():
        different = int((found != wanted).sum())
        return f"{different} of {found.numel()} values differ" if different else ""
    limit = bound(work.op, real, quantized=work.weight != "dense")
    measured = error(found, wanted)
    if measured.largest <= limit.largest and measured.rms <= limit.rms:
        return ""
    return f"its error is {_told(measured)}, at most {_told(limit)} is allowed"


def _told(one: Bound) -> str:
    return f"{one.largest:.2g} (rms {one.rms:.2g})"


def _pairs(
    work: Work, arguments: Arguments, outputs: list[Any], weight: Weight | None, r: torch.Generator
) -> list[tuple[Tensor, Tensor, torch.dtype]]:
    """Parts of the result, what they should be, and the type whose bound holds."""
    reference = NumpyBackend(torch.device("cpu"), np.float64)
    args = {name: _wide(value) for name, value in arguments.items() if name != "weight"}
    real = next((x.dtype for x in arguments.values() if isinstance(x, Tensor)), torch.float32)
    outs: list[Tensor] = [x.cpu() for x in outputs if x is not None]
    if work.op == "qkv":
        return _qkv(work, args, arguments["cache"], outs[0], weight, reference, r, real)
    if work.op == "attention":
        return _attention(work, args, outs[0], reference, r, real)
    if work.op == "write_kv":
        reference.write_kv(**args)
        at = _slots(args["batch"].slots, arguments["cache"])
        pairs = zip(arguments["cache"], args["cache"], strict=True)
        return [(x.cpu()[at], y[at].to(x.dtype), real) for x, y in pairs if x is not None]
    if weight is None:
        made = getattr(reference, work.op)(**args)
        every = list(made) if isinstance(made, tuple) else [made]
        return [(out, want, real) for out, want in zip(outs, every, strict=True)]
    if work.op == "embed":
        some = _some(len(args["tokens"]), r)
        wanted = _rows(weight, args["tokens"][some]).dequantize(torch.float64)
        return [(outs[0][some], wanted, outs[0].dtype)]
    shape = (work.m, work.n // (2 if work.op == "gate_up" else 1))
    if outs[0].shape != shape:  # parts of it could be right
        return [(outs[0], torch.empty(shape), real)]
    columns = _some(shape[1], r)
    rows = columns
    if work.op == "gate_up":
        rows = (2 * columns[:, None] + torch.arange(2)).flatten()
    if work.op == "project_add":
        args["x"] = args["x"][:, columns]
    matrix = reference.prepare(_rows(weight, rows), work.op)
    return [(outs[0][:, columns], getattr(reference, work.op)(**args, weight=matrix), real)]


_CPU = torch.device("cpu")


def _qkv(
    work: Work, args: Arguments, written: LayerCache, out: Tensor, weight: Weight | None,
    reference: NumpyBackend, r: torch.Generator, real: torch.dtype,
) -> list[tuple[Tensor, Tensor, torch.dtype]]:  # fmt: skip
    """Some heads of q, k and v."""
    assert weight is not None
    c = work.config
    count = max(ROWS // c.head_dim, 1)
    q, kv = _some(c.heads, r, count), _some(c.kv_heads, r, count)
    heads = torch.cat([q, c.heads + kv, c.heads + c.kv_heads + kv])
    rows = (heads[:, None] * c.head_dim + torch.arange(c.head_dim)).flatten()
    cache = LayerCache(args["cache"].k[:, kv], args["cache"].v[:, kv])
    matrix = reference.prepare(_rows(weight, rows), work.op)
    wanted = reference.qkv(**(args | {"cache": cache}), weight=matrix)
    at = _slots(args["batch"].slots, written)
    stored = zip((written.k, written.v), (cache.k, cache.v), strict=True)
    pairs = [(x.cpu()[:, kv][at], y[at], real) for x, y in stored]
    return [(out[:, q], wanted, real), *pairs]


def _attention(
    work: Work, args: Arguments, out: Tensor, reference: NumpyBackend, r: torch.Generator,
    real: torch.dtype,
) -> list[tuple[Tensor, Tensor, torch.dtype]]:  # fmt: skip
    """Some key-value heads with all of their queries."""
    c = work.config
    each = c.heads // c.kv_heads
    kv = _some(c.kv_heads, r, max(SCORES // (each * work.m * work.context), 1))
    q = (kv[:, None] * each + torch.arange(each)).flatten()
    parts: list[Any] = [x if x is None else x[:, kv] for x in args["cache"]]
    wanted = reference.attention(args["q"][:, q], args["batch"], LayerCache(*parts))
    return [(out.view(work.m, c.heads, c.head_dim)[:, q].flatten(1), wanted, real)]


def _slots(slots: Tensor, cache: LayerCache) -> tuple[Any, ...]:
    page = cache.k.shape[2]
    return slots // page, slice(None), slots % page


def _strayed(cache: LayerCache, before: Sequence[Any], at: tuple[Any, ...]) -> bool:
    """Whether the cache is another than before but for some slots, which `before` gets as well."""
    for part, old in zip(cache, before, strict=True):
        if part is not None:
            old[at] = part[at]
            if not torch.equal(part, old):
                return True
    return False


def _some(count: int, r: torch.Generator, most: int = ROWS) -> Tensor:
    """Indices in rising order: all, or the last and others at random."""
    if count <= most:
        return torch.arange(count)
    drawn = torch.randperm(count - 1, generator=r)[: most - 1].sort().values
    return torch.cat([drawn, torch.tensor([count - 1])])


def _rows(weight: Weight, rows: Tensor) -> Weight:
    first: Sequence[Any] = list(vars(weight).values())
    return weight.rows(rows.to(first[0].device)).to(_CPU)


def _wide(value: Any) -> Any:
    """The same on the CPU, activations and dense caches in float64."""
    if isinstance(value, Tensor):
        return value.to(_CPU, torch.float64 if value.is_floating_point() else value.dtype)
    if isinstance(value, LayerCache):
        k, v, *scales = value
        copies = (x if x is None else x.to(_CPU, copy=True) for x in scales)
        return LayerCache(*(_wide(x).clone() for x in (k, v)), *copies)
    if isinstance(value, tuple):  # a norm, the RoPE table
        return type(value)(*(x.cpu() if isinstance(x, Tensor) else x for x in value))
    moved = {name: x.cpu() for name, x in vars(value).items() if isinstance(x, Tensor)}
    return replace(value, **moved)

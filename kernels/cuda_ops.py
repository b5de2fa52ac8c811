"""Launches of the small kernels in CUDA C: the ops alone, and the step between two steps."""

import torch

from llama2gpu.kernels.cuda import TYPES, Argument, CudaLaunch, Runner
from llama2gpu.ops.paged import LayerCache
from llama2gpu.quant import Dense, Int8, Weight

WARP = 32

#: Threads of a block where each has a number of its own.
THREADS = 256
#: Heads of a block, a warp each.
HEADS = 4


def plan_numbers(rows: int, columns: int, threads: int = THREADS) -> tuple[int, int, int]:
    """The grid of a thread for each number, or of `threads` a block.

    Rows go along x, where a grid may have 2³¹ − 1 blocks; along y there are at most 65535.
    """
    return rows, -(-columns // threads), 1


def plan_heads(tokens: int, heads: int) -> tuple[tuple[int, int, int], int]:
    """The grid and the threads of a block of a warp for each head of each token."""
    warps = min(heads, HEADS)
    return (tokens, -(-heads // warps), 1), warps * WARP


def plan_norm(dim: int) -> int:
    """Threads of a block that has a row: 8 numbers each, or more where that needs over 512."""
    return min(512, -(-dim // (8 * WARP)) * WARP)


def embed(run: Runner, tokens: torch.Tensor, weight: Weight, dtype: torch.dtype) -> torch.Tensor:
    """Rows of an embedding [vocab, dim] in `dtype`: tokens int64 [T] → [T, dim]."""
    count, dim = len(tokens), weight.shape[1]
    y = torch.empty(count, dim, dtype=dtype, device=tokens.device)
    values, scales, zeros, order, bits, group = _parts(weight)
    defines: dict[str, str | int] = {
        "TYPE": TYPES[dtype],
        "BITS": bits,
        "VALUE": TYPES[values.dtype],
        "SCALE": "float" if scales is None else TYPES[scales.dtype],
    }
    arguments = (tokens, values, scales, zeros, order, y, dim, group)
    run(CudaLaunch("embed", "embed", plan_numbers(count, dim), THREADS, arguments, defines))
    return y


def rms_norm(run: Runner, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / √(mean(x²) + eps) · weight in float32: x [T, dim], weight float32 [dim] → as x."""
    x = x if x.stride(1) == 1 else x.contiguous()
    tokens, dim = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    arguments = (x, weight, y, dim, x.stride(0), float(eps))
    defines = {"TYPE": TYPES[x.dtype]}
    run(CudaLaunch("norm", "rms_norm", (tokens, 1, 1), plan_norm(dim), arguments, defines))
    return y


def silu_mul(run: Runner, x: torch.Tensor) -> torch.Tensor:
    """silu(gate) · up, gates and ups interleaved: [T, 2 · hidden] → [T, hidden]."""
    tokens, hidden = x.shape[0], x.shape[1] // 2
    y = torch.empty(tokens, hidden, dtype=x.dtype, device=x.device)
    grid = plan_numbers(tokens, hidden)
    arguments = (x.contiguous(), y, hidden)
    run(CudaLaunch("swiglu", "silu_mul", grid, THREADS, arguments, {"TYPE": TYPES[x.dtype]}))
    return y


def rope(
    run: Runner, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """Turns each pair of [T, heads, head_dim] by the angle of its position → the same, joined.

    x: heads side by side in rows of any stride. cos, sin: float32 [context, head_dim / 2].
    positions: int64 [T].
    """
    x = _side_by_side(x)
    tokens, heads, head_dim = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    arguments = (x, cos, sin, positions, y, heads, head_dim, x.stride(0))
    _launch_heads(run, "rope", tokens, heads, arguments, x.dtype, x.dtype)
    return y


def write_kv(
    run: Runner, k: torch.Tensor, v: torch.Tensor, slots: torch.Tensor, cache: LayerCache
) -> None:
    """Writes keys and values [T, kv_heads, head_dim] at slots int64 [T]; see `Backend.write_kv`."""
    k, v = _side_by_side(k), _side_by_side(v)
    tokens, kv_heads, head_dim = k.shape
    sizes = (kv_heads, head_dim, cache.k.shape[2], k.stride(0), v.stride(0))
    arguments = (k, v, slots, *cache, *sizes)
    _launch_heads(run, "write_kv", tokens, 2 * kv_heads, arguments, k.dtype, cache.k.dtype)


def rope_write(
    run: Runner,
    y: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    cache: LayerCache,
) -> torch.Tensor:
    """`rope` of queries and keys and `write_kv`, in one pass over the projection's rows.

    y [T, (heads + 2 kv_heads) · head_dim] → queries [T, heads, head_dim].
    """
    _, kv_heads, page, head_dim = cache.k.shape
    tokens, heads = y.shape[0], y.shape[1] // head_dim - 2 * kv_heads
    q = torch.empty(tokens, heads, head_dim, dtype=y.dtype, device=y.device)
    sizes = (heads, kv_heads, head_dim, page, y.stride(0))
    arguments = (y, cos, sin, positions, slots, q, *cache, *sizes)
    every = heads + 2 * kv_heads
    _launch_heads(run, "rope_write", tokens, every, arguments, y.dtype, cache.k.dtype)
    return q


def advance(
    run: Runner,
    drawn: torch.Tensor,
    tokens: torch.Tensor,
    positions: torch.Tensor,
    lengths: torch.Tensor,
    draws: torch.Tensor,
    slots: torch.Tensor,
    block_table: torch.Tensor,
    page: int,
    generated: torch.Tensor | None = None,
) -> None:
    """Readies S sequences for their next step: see `ops.advance`; draws: `SampleParams.draw`."""
    rows, vocab = len(drawn), 1 if generated is None else generated.shape[1]
    state = (drawn, tokens, positions, lengths, draws, slots, block_table, generated)
    arguments = (*state, rows, block_table.shape[1], page, vocab)
    run(CudaLaunch("advance", "advance", (-(-rows // THREADS), 1, 1), THREADS, arguments))


def _launch_heads(
    run: Runner, kernel: str, tokens: int, heads: int, arguments: tuple[Argument, ...],
    dtype: torch.dtype, cached: torch.dtype,
) -> None:  # fmt: skip
    grid, threads = plan_heads(tokens, heads)
    defines = {"TYPE": TYPES[dtype], "CACHE": TYPES[cached]}
    run(CudaLaunch("rope", kernel, grid, threads, arguments, defines))


def _parts(
    weight: Weight,
) -> tuple[
    torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, int, int
]:  # fmt: skip
    """values, scales, zeros, order, bits and group of an embedding: see `embed.cu`."""
    if isinstance(weight, Dense):
        return weight.data, None, None, None, 8 * weight.data.itemsize, weight.shape[1]
    if isinstance(weight, Int8):
        return weight.data, weight.scales, None, None, 8, weight.group
    return weight.packed, weight.scales, weight.zeros, weight.order, 4, weight.group


def _side_by_side(x: torch.Tensor) -> torch.Tensor:
    """`x` where its heads follow one another in a row, a copy otherwise."""
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()

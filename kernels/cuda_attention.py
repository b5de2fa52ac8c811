"""Launches of attention in CUDA C: of one query a sequence, and of many."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llama2gpu.kernels.cuda import TYPES, Argument, CudaLaunch, Runner
from llama2gpu.kernels.splits import Tiles as Tiles
from llama2gpu.kernels.splits import Workspace as Workspace
from llama2gpu.kernels.splits import cut_tiles, power_of_two
from llama2gpu.kernels.splits import make_workspace as make_workspace
from llama2gpu.kernels.splits import splits_for as find_splits
from llama2gpu.ops.paged import LayerCache

#: Threads of a block, as the kernels have them, and rows of a tile of `prefill.cu`.
THREADS, ROWS = 128, 32
WARP = 32
#: Query heads of a block at most, and numbers that a thread has of all their vectors: what
#: registers hold.
MOST_HEADS, MOST_NUMBERS = 4, 32
#: Blocks that a multiprocessor holds at a time.
RESIDENT = 3
#: Multiprocessors that splits are chosen for where no device says how many it has.
MULTIPROCESSORS = 80


@dataclass(frozen=True)
class DecodePlan:
    """The grid, and query heads of a block."""

    grid: tuple[int, int, int]
    heads: int


def plan_decode(
    sequences: int, heads: int, kv_heads: int, head_dim: int, kv_dtype: torch.dtype, splits: int
) -> DecodePlan:
    """A block for each sequence, some query heads of a key-value head, and split."""
    group = heads // kv_heads
    held = max(1, MOST_NUMBERS // count_numbers(head_dim, kv_dtype))
    if kv_dtype == torch.float32 and head_dim > 128:
        held = min(held, 2)  # of long heads in float32 four spill
    of_block = min(MOST_HEADS, 1 << (held.bit_length() - 1), power_of_two(group))
    return DecodePlan((sequences, kv_heads * -(-group // of_block), splits), of_block)


def count_numbers(head_dim: int, kv_dtype: torch.dtype) -> int:
    """Numbers of a cached vector that one thread of `attention.cu` has."""
    size = kv_dtype.itemsize
    piece = 16 // size if head_dim * size % 16 == 0 else 1
    return -(-head_dim // (piece * WARP)) * piece


def splits_for(length: int, sequences: int, kv_heads: int, multiprocessors: int) -> int:
    """Into how many shares to split sequences of up to `length` tokens: a power of two."""
    return find_splits(length, sequences, kv_heads, multiprocessors, RESIDENT)


def make_tiles(
    new_counts: Sequence[int], cached_counts: Sequence[int], heads: int, kv_heads: int,
    device: torch.device,
) -> Tiles:  # fmt: skip
    """The tiles of a batch, made once for all of its layers.

    new_counts, cached_counts: as in `Batch`; a sequence may have no new token.
    """
    return cut_tiles(new_counts, cached_counts, heads // kv_heads, ROWS, device)


def decode_attention(
    run: Runner, q: torch.Tensor, cache: LayerCache, lengths: torch.Tensor,
    block_table: torch.Tensor, *, splits: int, workspace: Workspace,
) -> torch.Tensor:  # fmt: skip
    """Attention of one query a sequence: q [S, heads, head_dim] → the same shape.

    lengths: int32 [S], cached tokens; of none, the output is 0. block_table: int32 [S, P]; see
    `Backend.attend`. Neither is read on the host, so that a captured launch serves sequences of any
    length. workspace: by `make_workspace`, of so many splits or more.
    """
    sequences, heads, head_dim = q.shape
    plan = plan_decode(sequences, heads, cache.k.shape[1], head_dim, cache.k.dtype, splits)
    where = (lengths, block_table)
    defines = {"HEADS": plan.heads}
    return _launch(run, "attention", plan.grid, q, cache, where, tuple(workspace), defines)


def prefill_attention(
    run: Runner, q: torch.Tensor, cache: LayerCache, starts: torch.Tensor, lengths: torch.Tensor,
    block_table: torch.Tensor, tiles: Tiles,
) -> torch.Tensor:  # fmt: skip
    """Causal attention of the new tokens of any sequences: q [T, heads, head_dim] → the same shape.

    starts: int32 [S + 1]; lengths: int32 [S]; block_table: int32 [S, P]; see `Backend.attend`.
    """
    grid = (len(tiles.table), cache.k.shape[1], 1)
    where = (tiles.table, starts, lengths, block_table)
    return _launch(run, "prefill", grid, q, cache, where, (), {})


def _launch(
    run: Runner, kernel: str, grid: tuple[int, int, int], q: torch.Tensor, cache: LayerCache,
    where: tuple[torch.Tensor, ...], room: tuple[torch.Tensor, ...], defines: dict[str, int],
) -> torch.Tensor:  # fmt: skip
    """where: ends with the block table."""
    _, heads, head_dim = q.shape
    _, kv_heads, page, _ = cache.k.shape
    if q.stride()[1:] != (head_dim, 1):
        q = q.contiguous()
    y = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    sizes = (kv_heads, heads // kv_heads, page, _divide(page), where[-1].stride(0), q.stride(0))
    scale = math.log2(math.e) / math.sqrt(head_dim)
    arguments: tuple[Argument, ...] = (q, *cache, *where, y, *room, *sizes, scale)
    types = {"TYPE": TYPES[q.dtype], "CACHE": TYPES[cache.k.dtype]}
    macros: dict[str, str | int] = {**types, "HEAD": head_dim, **defines}
    run(CudaLaunch(kernel, kernel, grid, THREADS, arguments, macros))
    return y


def _divide(page: int) -> int:
    """(2³² − 1) / page, as an int of 32 bits with a sign."""
    quotient = ((1 << 32) - 1) // page
    return quotient - (1 << 32) if quotient >= 1 << 31 else quotient

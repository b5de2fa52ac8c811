"""How attention is cut, whatever runs it: one query's tokens into shares, many queries into tiles.

Needs neither Triton nor CuPy.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

#: Tokens of a share, at least; and shares of a sequence, at most.
TILE, MOST_SPLITS = 64, 64
#: Programs that a multiprocessor holds at a time.
RESIDENT = 2


class Workspace(NamedTuple):
    """Room for parts of outputs; launches one after another share it.

    partial, sums: float32, outputs, and their maxima and sums. counters: int32, zeros in between.
    """

    partial: torch.Tensor
    sums: torch.Tensor
    counters: torch.Tensor


class Tiles(NamedTuple):
    """Which rows each program takes: int32 [tiles, 2], a sequence and its first row; rows each."""

    table: torch.Tensor
    block_m: int


def splits_for(
    length: int, sequences: int, kv_heads: int, multiprocessors: int, resident: int = RESIDENT
) -> int:
    """Into how many shares to split sequences of up to `length` tokens: a power of two.

    The fewest that keep the multiprocessors 85 % as busy as the best number would, each share of a
    tile at least. Source: the heuristic of FlashAttention, `num_splits_heuristic`.
    """
    slots, tiles = resident * multiprocessors, -(-max(length, 1) // TILE)
    choices = [1 << i for i in range(MOST_SPLITS.bit_length()) if 1 << i < 2 * tiles]

    def busy(splits: int) -> float:
        waves = sequences * kv_heads * splits / slots
        return waves / math.ceil(waves)

    best = max(busy(splits) for splits in choices)
    return next(splits for splits in choices if busy(splits) >= 0.85 * best)


def make_workspace(
    sequences: int, heads: int, kv_heads: int, head_dim: int, splits: int, device: torch.device
) -> Workspace:
    """Room for launches of up to so many sequences and splits."""
    rows = sequences * kv_heads * power_of_two(heads // kv_heads)
    partial = rows * splits * max(16, power_of_two(head_dim))
    return Workspace(
        partial=torch.empty(partial, dtype=torch.float32, device=device),
        sums=torch.empty(rows * splits * 2, dtype=torch.float32, device=device),
        counters=torch.zeros(rows, dtype=torch.int32, device=device),
    )


def cut_tiles(
    new_counts: Sequence[int], cached_counts: Sequence[int], group: int, block_m: int,
    device: torch.device,
) -> Tiles:  # fmt: skip
    """The tiles of a batch, those with most keys first.

    new_counts, cached_counts: as in `Batch`; a sequence may have no new token. group: query heads
    of a key-value head, each a row of every query. block_m: rows of a tile.
    """
    found = [
        (cached - new + first // group, s, first)
        for s, (new, cached) in enumerate(zip(new_counts, cached_counts, strict=True))
        for first in range(0, new * group, block_m)
    ]
    rows = [entry[1:] for entry in sorted(found, reverse=True)]
    table = torch.tensor(rows, dtype=torch.int32).reshape(-1, 2)
    return Tiles(table.to(device), block_m)


def power_of_two(number: int) -> int:
    """The least that is no less than a positive number."""
    return 1 << (number - 1).bit_length()

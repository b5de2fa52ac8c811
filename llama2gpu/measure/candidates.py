"""Tiles that may suit a matrix kernel: the ones to time."""

from collections.abc import Iterator
from itertools import product

from llama2gpu.kernels.arch import ARCHS
from llama2gpu.kernels.tiling import Tile, Use, misfit

#: Bytes that a lane loads at once.
LANE_BYTES = 16


def candidates(use: Use, quick: bool = False) -> Iterator[Tile]:
    """Tiles that a kernel takes for a use, each once; quick: the likeliest."""
    found = _one_token(use, quick) if use.tokens == 1 else _few_tokens(quick, use.width)
    for tile in dict.fromkeys(found):
        if not misfit(use, tile):
            yield tile


def _one_token(use: Use, quick: bool) -> Iterator[Tile]:
    """Spans that a program's warps load of one row at once, and half and twice of that."""
    lanes = ARCHS[use.arch].target.warp_size
    ratios = (2,) if quick else (1, 2, 4)  # halves
    warps = (1, 2, 4) if quick else (1, 2, 4, 8)
    for num_warps, ratio, block_n in product(warps, ratios, (4, 8, 16, 32)):
        block = num_warps * lanes * LANE_BYTES // use.width * ratio // 2
        yield Tile(block_n, min(block, use.widest), num_warps)


def _few_tokens(quick: bool, width: int) -> Iterator[Tile]:
    rows = (32, 64) if quick else (16, 32, 64, 128)
    spans = (64, 128) if quick else (64, 128, 256)  # bytes of a row
    warps, stages = ((4, 8), (2, 3)) if quick else ((2, 4, 8), (2, 3, 4))
    for num_warps, num_stages, span, block_n in product(warps, stages, spans, rows):
        yield Tile(block_n, span // width, num_warps, num_stages)

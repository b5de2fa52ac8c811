"""The table of tiles, and what may stand in its place."""

from collections.abc import Sequence

import pytest
import torch

from llama2gpu.config import Config
from llama2gpu.kernels.arch import ARCHS, arch_of
from llama2gpu.kernels.launch import INTERPRETED, Launch
from llama2gpu.kernels.packed import Packed
from llama2gpu.kernels.tiling import SHIPPED, Tile, Use, misfit, shipped_tile, tiling_for, use_of
from llama2gpu.measure.candidates import candidates
from llama2gpu.measure.tune import problems, tune
from tests.kernels.device import DEVICE
from tests.measure.fake_bench import FakeBench

SM_90 = ARCHS["sm_90"]


def matrix(bits: int, rows: int, columns: int, group: int | None = None) -> Packed:
    stored = -(-columns // 16) * 16 if bits == 8 else columns
    return Packed(torch.empty(0), (rows, columns), bits, stored, group or columns)


def use(bits: int, rows: int, columns: int, tokens: int, group: int | None = None) -> Use:
    return use_of(SM_90, matrix(bits, rows, columns, group), tokens)


@pytest.mark.parametrize(
    ("found", "tile"),
    [
        (use(4, 4096, 4096, 1, 128), Tile(16, 256, 2)),
        (use(4, 4096, 1024, 1, 128), Tile(16, 128, 1)),
        (use(4, 2048, 5632, 1, 128), Tile(8, 256, 2)),
        (use(4, 512, 64, 1, 32), Tile(8, 8, 1)),
        (use(8, 11008, 4096, 1), Tile(16, 256, 2)),
        (use(8, 64, 172, 1), Tile(8, 64, 1)),
        (use(16, 32000, 4096, 1), Tile(8, 512, 2)),
        (use(32, 64, 172, 1), Tile(8, 128, 1)),
        (use(4, 4096, 4096, 16, 128), Tile(64, 16, 4, 2)),
        (use(4, 4096, 4096, 16, 32), Tile(64, 32, 4, 2)),
        (use(8, 4096, 4096, 64), Tile(64, 32, 4, 2)),
        (use(8, 64, 172, 64), Tile(64, 64, 4, 2)),
        (use(16, 4096, 4096, 64), Tile(64, 64, 4, 2)),
        (use(32, 4096, 4096, 64), Tile(64, 32, 4, 2)),
    ],
)
def test_shipped(found: Use, tile: Tile) -> None:
    assert shipped_tile(found) == tile


@pytest.mark.parametrize("arch", ARCHS)
def test_table_has_no_gap_and_no_idle_line(arch: str) -> None:
    every = [
        Use(arch, bits, group, rows, columns, tokens)
        for bits in (4, 8, 16, 32)
        for group in (32, 128)
        for rows in (2, 4096)
        for columns in (32, 8192)
        for tokens in (1, 16, 32, 64)
    ]
    serving = {next(line for line in SHIPPED if line.serves(one)) for one in every}
    assert serving == set(SHIPPED)


@pytest.mark.parametrize(
    ("tokens", "bucket"), [(1, 1), (2, 16), (16, 16), (17, 32), (33, 64), (64, 64), (200, 64)]
)
def test_bucket_is_the_block_of_tokens(tokens: int, bucket: int) -> None:
    assert use(16, 8, 8, tokens).tokens == bucket
    assert tiling_for(SM_90, matrix(16, 8, 8), tokens).block_m == bucket


def test_a_tuned_tile_wins_where_all_of_the_use_is_the_same() -> None:
    tile = Tile(32, 128, 8, 3)
    tuned = {use(16, 128, 512, 9): tile}

    def tile_of(found: Packed, tokens: int, arch: str = "sm_90") -> Tile:
        t = tiling_for(ARCHS[arch], found, tokens, tuned=tuned)
        return Tile(t.block_n, t.block, t.num_warps, t.num_stages)

    assert tile_of(matrix(16, 128, 512), 2) == tile_of(matrix(16, 128, 512), 16) == tile
    shipped = Tile(64, 64, 4, 2)
    assert tile_of(matrix(16, 128, 512), 17) == shipped
    assert tile_of(matrix(16, 130, 512), 2) == shipped
    assert tile_of(matrix(16, 128, 516), 2) == shipped
    assert tile_of(matrix(16, 128, 512), 2, "sm_80") == shipped
    assert tile_of(matrix(32, 128, 512), 2) == Tile(64, 32, 4, 2)


@pytest.mark.parametrize(
    ("found", "tile", "reason"),
    [
        (use(4, 4096, 4096, 1, 128), Tile(16, 256, 2), ""),
        (use(4, 4096, 4096, 1, 128), Tile(12, 256, 2), "powers of two"),
        (use(4, 4096, 4096, 1, 128), Tile(16, 256, 0), "powers of two"),
        (use(4, 4096, 4096, 1, 128), Tile(1, 256, 2), "1 rows"),
        (use(4, 4096, 4096, 1, 128), Tile(8, 1024, 8), "a row has 512"),
        (use(4, 4096, 4096, 1, 128), Tile(8, 2, 1), "a row has 512"),
        (use(4, 4096, 4096, 1, 128), Tile(64, 512, 2), "registers"),
        (use(4, 4096, 4096, 1, 128), Tile(8, 256, 32), "32 warps"),
        (use(4, 4096, 4096, 16, 128), Tile(8, 16, 4, 2), "8 rows"),
        (use(4, 4096, 4096, 16, 128), Tile(64, 8, 4, 2), "a row has 512"),
        (use(4, 4096, 4096, 16, 128), Tile(64, 16, 4, 9), "9 stages"),
        (use(16, 4096, 4096, 16), Tile(256, 256, 8, 2), "shared memory"),
    ],
)
def test_misfit(found: Use, tile: Tile, reason: str) -> None:
    assert reason in misfit(found, tile)
    assert bool(reason) == bool(misfit(found, tile))


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("tokens", [1, 16, 64])
@pytest.mark.parametrize(("bits", "group"), [(4, 128), (8, 4096), (16, 4096)])
def test_candidates(bits: int, group: int, tokens: int, arch: str) -> None:
    found = Use(arch, bits, group, 4096, 4096, tokens)
    every, quick = list(candidates(found)), list(candidates(found, quick=True))
    assert len(set(every)) == len(every) > len(quick) > 4
    assert set(quick) <= set(every)
    assert not [tile for tile in every if misfit(found, tile)]
    assert shipped_tile(found) in every


@pytest.mark.skipif(DEVICE is None, reason="no GPU, and TRITON_INTERPRET is not set")
@pytest.mark.parametrize("tokens", [1, *([] if INTERPRETED else [16, 64])])
@pytest.mark.parametrize("weight", ["int4", "int8", "dense"])
def test_every_candidate_gives_the_same(weight: str, tokens: int) -> None:
    """Fewer rows than the interpreter makes larger blocks of; it gets tl.dot of bfloat16 wrong."""
    assert DEVICE is not None
    small = Config(dim=64, hidden=96, layers=1, heads=2, kv_heads=1, head_dim=32, vocab=68,
                   context=64)  # fmt: skip
    arch = arch_of(DEVICE)

    def run(launches: Sequence[Launch]) -> None:
        for launch in launches:
            launch.run()

    bench = FakeBench(DEVICE, run=run)
    todo = problems(small, [weight], [tokens], arch)
    if INTERPRETED:  # slow: the one matrix whose rows no tile divides
        todo = [problem for problem in todo if problem.work.k == 96]
    for found in tune(todo, arch, bench, quick=INTERPRETED):
        assert found.tried > 3
        assert found.wrong == 0
        assert found.failed == 0 or not INTERPRETED

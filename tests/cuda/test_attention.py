"""Attention in CUDA C on a CPU against the reference, in several orders of threads and blocks."""

import zlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from llama2gpu.backends.inputs import Inputs
from llama2gpu.backends.numpy import NumpyBackend
from llama2gpu.kernels.cuda import CudaLaunch, Runner
from llama2gpu.kernels.cuda_attention import (
    MOST_HEADS,
    MOST_NUMBERS,
    ROWS,
    Workspace,
    count_numbers,
    decode_attention,
    make_tiles,
    make_workspace,
    plan_decode,
    prefill_attention,
)
from llama2gpu.ops.cases import CASES, Case
from llama2gpu.ops.paged import LayerCache
from llama2gpu.ops.tolerance import bound, error
from tests.cuda.emulator import GRID_LIMITS, EveryOrder
from tests.ops.unwritten import make_empty_nan

CPU = torch.device("cpu")
REFERENCE = NumpyBackend(CPU, np.float64)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#: A page that no cache has: what block tables hold past their end.
NOWHERE = 1 << 20


def attention(name: str, cached: tuple[int, ...], new: tuple[int, ...], page: int, *, heads: int,
              kv_heads: int, head_dim: int) -> Case:  # fmt: skip
    sizes = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    return Case(name, cached, new, dim=8, hidden=8, vocab=8, page=page, **sizes)


def one_query(name: str, lengths: tuple[int, ...], page: int, *, heads: int, kv_heads: int,
              head_dim: int) -> Case:  # fmt: skip
    cached, new = tuple(n - 1 for n in lengths), (1,) * len(lengths)
    sizes = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    return attention(name, cached, new, page, **sizes)


#: Lengths around the edges of pages and tiles; groups in one block and in several; vectors read in
#: pieces of 16 bytes, by all lanes or by some, and number by number.
DECODES = (
    one_query("page 64", (1, 63, 64, 65, 127, 129), 64, heads=2, kv_heads=1, head_dim=64),
    one_query("page 16", (1, 15, 16, 17, 31, 33), 16, heads=8, kv_heads=1, head_dim=128),
    one_query("page 1", (1, 2, 31, 66), 1, heads=4, kv_heads=1, head_dim=20),
    one_query("group 7", (100, 5), 16, heads=14, kv_heads=2, head_dim=48),
    one_query("no grouping", (7, 71), 7, heads=3, kv_heads=3, head_dim=8),
    one_query("wide", (90, 2), 64, heads=4, kv_heads=2, head_dim=256),
    one_query("odd", (40,), 16, heads=2, kv_heads=2, head_dim=250),
    one_query("long", (700, 513, 3), 64, heads=4, kv_heads=1, head_dim=128),
)
PREFILLS = (
    attention("tile edges", (0, 1, 63), (32, 33, 31), 64, heads=2, kv_heads=1, head_dim=64),
    attention("rows across tiles", (0, 130, 9), (43, 9, 0), 16, heads=3, kv_heads=1, head_dim=12),
    attention("group 8", (300, 0, 64), (13, 1, 16), 64, heads=16, kv_heads=2, head_dim=48),
    attention("page 1", (20, 0), (7, 5), 1, heads=7, kv_heads=1, head_dim=20),
    attention("wide", (31, 0), (3, 40), 7, heads=2, kv_heads=2, head_dim=256),
    attention("odd", (3,), (30,), 16, heads=2, kv_heads=1, head_dim=130),
    attention("long", (600,), (10,), 64, heads=4, kv_heads=1, head_dim=128),
)
SINGLE = tuple(case for case in CASES if all(new == 1 for new in case.new))


def name_of(value: object) -> str:
    return value.name if isinstance(value, Case) else str(value).removeprefix("torch.")


every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
every_cache = pytest.mark.parametrize("kv_dtype", [None, torch.int8], ids=["plain", "int8"])


@pytest.fixture
def run(every_order: EveryOrder, monkeypatch: pytest.MonkeyPatch) -> Runner:
    """Outputs begin as NaN, and so does the workspace, which no launch may count on."""
    make_empty_nan(monkeypatch)
    return every_order


class Example:
    """A case's arguments, with NaN where nobody may read, and what the reference makes of them."""

    def __init__(self, case: Case, dtype: torch.dtype, kv_dtype: torch.dtype | None = None) -> None:
        inputs = Inputs(case, dtype, zlib.crc32(case.name.encode()), kv_dtype)
        self.dtype, self.kv_heads = dtype, case.kv_heads
        self.wanted = REFERENCE.attend(**inputs.arguments("attend", REFERENCE, wide=True))
        self.batch = inputs.batch(CPU)
        self.table = self.batch.block_table.clone()
        for pages, length in zip(self.table, self.batch.cached_counts, strict=True):
            pages[-(-length // case.page) :] = NOWHERE
        arguments = inputs.arguments("attend", REFERENCE)
        self.q, cache = arguments["q"], arguments["cache"]
        for x in cache[2:] if kv_dtype == torch.int8 else cache[:2]:
            x[~inputs.written] = torch.nan
        self.cache = LayerCache(*cache)

    def workspace(self, splits: int) -> Workspace:
        sequences, heads, head_dim = self.q.shape
        return make_workspace(sequences, heads, self.kv_heads, head_dim, splits, CPU)

    def decoded(self, run: Runner, splits: int, workspace: Workspace) -> torch.Tensor:
        where = (self.batch.lengths, self.table)
        return decode_attention(run, self.q, self.cache, *where, splits=splits, workspace=workspace)

    def prefilled(self, run: Runner) -> torch.Tensor:
        batch, heads = self.batch, self.q.shape[1]
        tiles = make_tiles(batch.new_counts, batch.cached_counts, heads, self.kv_heads, CPU)
        where = (batch.starts, batch.lengths, self.table)
        return prefill_attention(run, self.q, self.cache, *where, tiles)

    def check(self, out: torch.Tensor) -> None:
        measured, limit = error(out, self.wanted), bound("attend", self.dtype)
        assert measured.largest <= limit.largest, measured
        assert measured.rms <= limit.rms, measured


@every_cache
@every_dtype
@pytest.mark.parametrize("case", SINGLE + DECODES, ids=name_of)
def test_decode(run: Runner, case: Case, dtype: torch.dtype, kv_dtype: torch.dtype | None) -> None:
    example = Example(case, dtype, kv_dtype)
    for splits in (1, 4, 16):
        workspace = example.workspace(splits)
        example.check(example.decoded(run, splits, workspace))
        assert not workspace.counters.any()


@pytest.mark.parametrize("length", [32 * 16, 40 * 16 - 5, 64 * 16])
def test_many_splits(run: Runner, length: int) -> None:
    """As many as a warp has lanes and more, each of a tile."""
    case = one_query("many splits", (length,), 64, heads=1, kv_heads=1, head_dim=128)
    example = Example(case, torch.float32)
    example.check(example.decoded(run, 64, example.workspace(64)))


@every_cache
@pytest.mark.parametrize("splits", [1, 4])
def test_a_sequence_without_tokens(run: Runner, splits: int, kv_dtype: torch.dtype | None) -> None:
    """It gives zeros, and its block table is not read; the others are as they are without it."""
    example = Example(DECODES[0], torch.float16, kv_dtype)
    example.batch.lengths[2] = 0
    example.table[2] = NOWHERE
    example.wanted[2] = 0
    example.check(example.decoded(run, splits, example.workspace(splits)))


def test_launches_share_a_workspace(run: Runner) -> None:
    """What a launch leaves there, and for how many splits, is nothing to the next one."""
    long, short = (Example(case, torch.float16) for case in (DECODES[7], DECODES[0]))
    workspace = make_workspace(7, 4, 1, 128, 16, CPU)
    for example, splits in ((long, 16), (short, 2), (long, 4), (long, 16)):
        example.check(example.decoded(run, splits, workspace))


def test_queries_beside_keys(run: Runner) -> None:
    """Queries may be a view of rows that hold keys and values too, as a projection leaves them."""
    example = Example(DECODES[0], torch.float16)
    tokens, heads, head_dim = example.q.shape
    rows = torch.full((tokens, heads + 2, head_dim), torch.nan, dtype=torch.float16)
    rows[:, :heads] = example.q
    example.q = rows[:, :heads]
    example.check(example.decoded(run, 2, example.workspace(2)))
    example.check(example.prefilled(run))


def test_one_score_far_above_the_others(run: Runner) -> None:
    """Scores in the thousands, of either sign: a softmax that is all but one token's."""
    case = one_query("steep", (1024,), 16, heads=1, kv_heads=1, head_dim=128)
    inputs = Inputs(case, torch.float32, 1)
    inputs.q *= 1000
    example = Example(case, torch.float32)
    example.q, example.cache, example.table = inputs.q, inputs.cache, inputs.table
    example.wanted = REFERENCE.attend(**inputs.arguments("attend", REFERENCE, wide=True))
    found = [example.decoded(run, splits, example.workspace(splits)) for splits in (1, 4, 64)]
    for out in (*found, example.prefilled(run)):
        assert error(out, example.wanted).largest < 1e-3


@every_cache
@every_dtype
@pytest.mark.parametrize("case", CASES + PREFILLS, ids=name_of)
def test_prefill(run: Runner, case: Case, dtype: torch.dtype, kv_dtype: torch.dtype | None) -> None:
    example = Example(case, dtype, kv_dtype)
    example.check(example.prefilled(run))


@every_dtype
def test_small_values_of_an_int8_cache(run: Runner, dtype: torch.dtype) -> None:
    """A probability times the scale of a small value is nothing to float16."""
    for case in (DECODES[1], PREFILLS[0]):
        example = Example(case, dtype, torch.int8)
        assert example.cache.v_scale is not None
        example.cache = example.cache._replace(v_scale=example.cache.v_scale * 1e-3)
        example.wanted *= 1e-3
        example.check(example.prefilled(run))
        if case in DECODES:
            example.check(example.decoded(run, 2, example.workspace(2)))


class Recorder:
    """A `Runner` that runs nothing."""

    def __init__(self) -> None:
        self.launches: list[CudaLaunch] = []

    def __call__(self, launch: CudaLaunch) -> None:
        self.launches.append(launch)


def plans() -> Iterator[tuple[int, int, torch.dtype]]:
    for head_dim in (1, 8, 20, 64, 80, 128, 250, 256):
        for group in (1, 2, 3, 4, 7, 8, 20):
            for dtype in (torch.float32, torch.bfloat16, torch.int8):
                yield head_dim, group, dtype


def test_blocks_have_registers_and_room() -> None:
    """Query heads of a block are few, and all blocks of a launch find theirs in the workspace."""
    for head_dim, group, dtype in plans():
        plan = plan_decode(3, 5 * group, 5, head_dim, dtype, 4)
        sequences, blocks, splits = plan.grid
        assert (sequences, splits) == (3, 4)
        assert 1 <= plan.heads <= MOST_HEADS
        assert plan.heads * count_numbers(head_dim, dtype) <= MOST_NUMBERS
        assert blocks % 5 == 0
        assert group <= blocks // 5 * plan.heads < group + plan.heads
        workspace = make_workspace(3, 5 * group, 5, head_dim, 4, torch.device("meta"))
        rows = 3 * blocks * plan.heads
        assert rows * splits * head_dim <= workspace.partial.numel()
        assert rows * splits * 2 <= workspace.sums.numel()
        assert 3 * blocks <= workspace.counters.numel()


def test_many_tokens_fit_a_grid() -> None:
    """A long prompt and a large batch, of a model of 70 billion parameters."""
    record = Recorder()
    heads, kv_heads, head, tokens = 64, 8, 128, 1 << 17
    meta = torch.device("meta")
    q = torch.empty(tokens, heads, head, dtype=torch.float16, device=meta)
    pages = torch.empty(tokens // 64, kv_heads, 64, head, dtype=torch.float16, device=meta)
    index = torch.empty(tokens, dtype=torch.int32, device=meta)
    cache, tiles = LayerCache(pages, pages), make_tiles([tokens], [tokens], heads, kv_heads, CPU)
    where = (index, index[:, None])
    prefill_attention(record, q, cache, index, *where, tiles)
    workspace = make_workspace(tokens, heads, kv_heads, head, 64, meta)
    decode_attention(record, q, cache, *where, splits=64, workspace=workspace)
    assert record.launches[0].grid[0] == tokens * heads // kv_heads // ROWS
    assert len(record.launches) == 2
    for launch in record.launches:
        assert all(0 < n <= most for n, most in zip(launch.grid, GRID_LIMITS, strict=True))


@pytest.mark.parametrize("page", [1, 2, 3, 7, 16, 48, 64, 100, 1024])
def test_pages_of_tokens_far_on(page: int) -> None:
    """Division by a multiplication, as `row_of` of paged.cuh does it, is exact."""
    record = Recorder()
    cache, index = torch.empty(1, 1, page, 8), torch.ones(1, 1, dtype=torch.int32)
    q, where = torch.empty(1, 1, 8), (index[0], index)
    workspace = make_workspace(1, 1, 1, 8, 1, CPU)
    keys = LayerCache(cache, cache)
    decode_attention(record, q, keys, *where, splits=1, workspace=workspace)
    sizes = [a for a in record.launches[0].arguments if isinstance(a, int)]
    assert sizes[2] == page
    divide = torch.tensor(sizes[3]) % (1 << 32)
    ends = torch.arange(1, min((1 << 32) // page**2, 1 << 16)) * page
    last = (1 << 32) // page // page * page
    tokens = torch.cat((ends - 1, ends, torch.tensor([0, last - 1, last - page])))
    tokens = tokens[tokens < min((1 << 32) // page, (1 << 31) - 1)]
    assert torch.equal(((tokens + 1) * divide) >> 32, tokens // page)

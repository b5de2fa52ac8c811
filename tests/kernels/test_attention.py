"""Flash-decoding and flash prefill against the reference: interpreted, or on a GPU."""

import zlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from llama2gpu.backends.inputs import Inputs
from llama2gpu.backends.numpy import NumpyBackend
from llama2gpu.kernels.arch import ARCHS, PLAIN, Arch, arch_of
from llama2gpu.kernels.attention import decode_attention
from llama2gpu.kernels.attention_cache import find_mask, operand, swap, unpack
from llama2gpu.kernels.launch import INTERPRETED
from llama2gpu.kernels.prefill import make_tiles, prefill_attention
from llama2gpu.kernels.splits import (
    MOST_SPLITS,
    TILE,
    Tiles,
    Workspace,
    make_workspace,
    splits_for,
)
from llama2gpu.ops.cases import CASES, Case
from llama2gpu.ops.tolerance import bound, error
from tests.kernels.device import DEVICE, DTYPES

needs_device = pytest.mark.skipif(DEVICE is None, reason="no GPU, and TRITON_INTERPRET is not set")
REFERENCE = NumpyBackend(torch.device("cpu"), np.float64)


def one_query(name: str, lengths: tuple[int, ...], page: int, *, heads: int, kv_heads: int,
              head_dim: int) -> Case:  # fmt: skip
    cached, new = tuple(n - 1 for n in lengths), (1,) * len(lengths)
    sizes = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    return Case(name, cached, new, dim=8, hidden=8, vocab=8, page=page, **sizes)


#: Lengths around the edges of pages and tiles; groups; head sizes; pages whole and in parts.
DECODES = (
    one_query("page 64", (1, 63, 64, 65, 127, 128, 129), 64, heads=2, kv_heads=1, head_dim=64),
    one_query("page 16", (1, 15, 16, 17, 64, 65), 16, heads=3, kv_heads=1, head_dim=64),
    one_query("page 7", (6, 7, 8, 63, 71), 7, heads=4, kv_heads=4, head_dim=8),
    one_query("page 128", (128, 130, 300), 128, heads=8, kv_heads=1, head_dim=128),
    one_query("long", (1500, 1025, 3), 64, heads=4, kv_heads=1, head_dim=64),
    one_query("group 16", (100,), 64, heads=16, kv_heads=1, head_dim=128),
    one_query("group 20", (70,), 64, heads=40, kv_heads=2, head_dim=12),
    one_query("wide", (90, 2), 64, heads=2, kv_heads=2, head_dim=256),
)
PADDED = one_query("padded", (130, 1, 16, 64), 16, heads=6, kv_heads=2, head_dim=64)
PREFILLS = (
    Case("tile edges", cached=(0, 1, 63), new=(64, 63, 65), heads=2, kv_heads=1, head_dim=64,
         dim=8, hidden=8, vocab=8, page=64),
    Case("rows across tiles", cached=(0, 130, 9), new=(43, 90, 0), heads=3, kv_heads=1,
         head_dim=12, dim=8, hidden=8, vocab=8, page=16),
    Case("chunk of many", cached=(300, 0, 64), new=(129, 1, 16), heads=16, kv_heads=2,
         head_dim=16, dim=8, hidden=8, vocab=8, page=64),
    Case("long", cached=(1000,), new=(30,), heads=4, kv_heads=1, head_dim=128, dim=8, hidden=8,
         vocab=8, page=64),
)  # fmt: skip
SINGLE = tuple(case for case in CASES if all(new == 1 for new in case.new))


def name_of(value: object) -> str:
    return str(value).removeprefix("torch.") if not isinstance(value, Case) else value.name


every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
every_cache = pytest.mark.parametrize("kv_dtype", [None, torch.int8], ids=["plain", "int8"])


@pytest.fixture(autouse=True)
def _unwritten_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.empty` gives NaN: outputs, and the workspace, which no launch may count on."""
    plain = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: plain(*a, **k).fill_(torch.nan))


def place() -> torch.device:
    assert DEVICE is not None
    return DEVICE


class Example:
    """A case's arguments on the device, and what the reference makes of them."""

    def __init__(self, case: Case, dtype: torch.dtype, kv_dtype: torch.dtype | None) -> None:
        inputs = Inputs(case, dtype, zlib.crc32(case.name.encode()), kv_dtype)
        self.dtype, self.kv_heads = dtype, case.kv_heads
        self.wanted = REFERENCE.attend(**inputs.arguments("attend", REFERENCE, wide=True))
        self.batch = inputs.batch(place())
        arguments = inputs.arguments("attend", REFERENCE)
        self.q = arguments["q"].to(place())
        parts = (x if x is None else x.to(place()) for x in arguments["cache"])
        self.cache = type(arguments["cache"])(*parts)

    def workspace(self, splits: int) -> Workspace:
        sequences, heads, head_dim = self.q.shape
        return make_workspace(sequences, heads, self.kv_heads, head_dim, splits, place())

    def decoded(self, splits: int, workspace: Workspace, arch: Arch | None = None) -> torch.Tensor:
        lengths, table, arch = self.batch.lengths, self.batch.block_table, arch or arch_of(place())
        return decode_attention(
            self.q, self.cache, lengths, table, splits=splits, workspace=workspace, arch=arch
        )

    def tiles(self, arch: Arch) -> Tiles:
        batch, (_, heads, head_dim) = self.batch, self.q.shape
        return make_tiles(
            batch.new_counts, batch.cached_counts, heads, self.kv_heads, head_dim, self.dtype,
            arch, place(), quantized=self.cache.k_scale is not None,
        )  # fmt: skip

    def prefilled(self, arch: Arch | None = None) -> torch.Tensor:
        batch, arch = self.batch, arch or arch_of(place())
        where = (batch.starts, batch.lengths, batch.block_table, self.tiles(arch))
        return prefill_attention(self.q, self.cache, *where, arch=arch)

    def check(self, out: torch.Tensor) -> None:
        measured, limit = error(out.cpu(), self.wanted), bound("attend", self.dtype)
        assert measured.largest <= limit.largest, measured
        assert measured.rms <= limit.rms, measured


@needs_device
@every_cache
@every_dtype
@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("case", SINGLE + DECODES, ids=name_of)
def test_decode(case: Case, splits: int, dtype: torch.dtype, kv_dtype: torch.dtype | None) -> None:
    example = Example(case, dtype, kv_dtype)
    workspace = example.workspace(splits)
    example.check(example.decoded(splits, workspace))
    assert not workspace.counters.any()


@needs_device
@pytest.mark.parametrize("splits", [2, 8, 16, 64])
def test_any_number_of_splits(splits: int) -> None:
    """More splits than tiles too, and more than are added up at a time."""
    example = Example(DECODES[4], torch.float16, None)
    example.check(example.decoded(splits, example.workspace(splits)))


@needs_device
@every_cache
@every_dtype
@pytest.mark.parametrize("splits", [1, 4])
def test_sequences_without_tokens(
    splits: int, dtype: torch.dtype, kv_dtype: torch.dtype | None
) -> None:
    """Rows that pad a batch: 0, whatever their query and their pages."""
    example = Example(PADDED, dtype, kv_dtype)
    for row in (1, 3):
        example.batch.lengths[row] = 0
        example.batch.block_table[row] = 1 << 30
        example.q[row] = torch.nan
        example.wanted[row] = 0
    workspace = example.workspace(splits)
    out = example.decoded(splits, workspace)
    example.check(out)
    assert not out[[1, 3]].any()
    assert not workspace.counters.any()


@needs_device
@every_cache
@pytest.mark.parametrize("group", range(1, 9))
@pytest.mark.parametrize("head_dim", [8, 20, 256])
def test_groups_of_heads(head_dim: int, group: int, kv_dtype: torch.dtype | None) -> None:
    """Contexts within a page, up to its edge and across several, in one batch."""
    sizes = {"heads": 2 * group, "kv_heads": 2, "head_dim": head_dim}
    case = one_query(f"{group} heads of {head_dim}", (1, 16, 37), 16, **sizes)
    for dtype in DTYPES:
        example = Example(case, dtype, kv_dtype)
        example.check(example.decoded(2, example.workspace(2)))


@pytest.mark.skipif(not INTERPRETED, reason="a device takes the plans of its own architecture")
@every_cache
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=name_of)
@pytest.mark.parametrize("arch", ["sm_90", "sm_100", "sm_120", "gfx942", "gfx1100"])
def test_plans_of_other_architectures(
    arch: str, dtype: torch.dtype, kv_dtype: torch.dtype | None
) -> None:
    for head_dim in (24, 80, 128):
        sizes = {"heads": 4, "kv_heads": 2, "head_dim": head_dim}
        one = Example(one_query(f"one of {head_dim}", (3, 70), 64, **sizes), dtype, kv_dtype)
        one.check(one.decoded(2, one.workspace(2), ARCHS[arch]))
        chunk = Case(f"chunk of {head_dim}", cached=(60, 0), new=(9, 5), dim=8, hidden=8, vocab=8,
                     page=64, **sizes)  # fmt: skip
        many = Example(chunk, dtype, kv_dtype)
        many.check(many.prefilled(ARCHS[arch]))


@triton.jit
def _unpack_kernel(p_words, p_out, length, operand: tl.constexpr):
    b_x = unpack(tl.load(p_words + tl.arange(0, 64)), find_mask(length, operand), operand)
    tl.store(p_out + swap(tl.arange(0, 256)), tl.reshape(b_x, (256,)).to(tl.float32))


@needs_device
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=name_of)
def test_bytes_are_unpacked_exactly(dtype: torch.dtype) -> None:
    codes = torch.arange(-128, 128, dtype=torch.int8, device=place())
    out = torch.empty(256, dtype=torch.float32, device=place())
    _unpack_kernel[(1,)](codes.view(torch.int32), out, 1, operand=operand(dtype))
    assert out.tolist() == list(range(-128, 128))


@needs_device
def test_launches_share_a_workspace() -> None:
    """What a launch leaves there, and for how many splits, is nothing to the next one."""
    long, short = (Example(case, torch.float16, None) for case in (DECODES[4], DECODES[0]))
    sequences, heads, head_dim = 7, 4, 64
    workspace = make_workspace(sequences, heads, 1, head_dim, 16, place())
    for example, splits in ((long, 16), (short, 2), (long, 4), (long, 16)):
        example.check(example.decoded(splits, workspace))


@needs_device
def test_queries_beside_keys() -> None:
    """Queries may be a view of rows that hold keys and values too, as a projection leaves them."""
    example = Example(DECODES[0], torch.float16, None)
    tokens, heads, head_dim = example.q.shape
    rows = torch.full((tokens, heads + 2, head_dim), torch.nan, dtype=torch.float16)
    rows = rows.to(place())
    rows[:, :heads] = example.q
    example.q = rows[:, :heads]
    example.check(example.decoded(2, example.workspace(2)))
    example.check(example.prefilled())


@needs_device
@every_cache
@every_dtype
@pytest.mark.parametrize("case", CASES + PREFILLS, ids=name_of)
def test_prefill(case: Case, dtype: torch.dtype, kv_dtype: torch.dtype | None) -> None:
    example = Example(case, dtype, kv_dtype)
    example.check(example.prefilled())


@needs_device
@every_dtype
def test_small_values_of_an_int8_cache(dtype: torch.dtype) -> None:
    """A probability times the scale of a small value is nothing to float16."""
    for case in (DECODES[1], PREFILLS[0]):
        example = Example(case, dtype, torch.int8)
        assert example.cache.v_scale is not None
        example.cache = example.cache._replace(v_scale=example.cache.v_scale * 1e-3)
        example.wanted *= 1e-3
        example.check(example.prefilled())
        if case in DECODES:
            example.check(example.decoded(2, example.workspace(2)))


@pytest.mark.parametrize("case", CASES + PREFILLS, ids=name_of)
def test_tiles_are_every_row_once(case: Case) -> None:
    lengths = [new + cached for new, cached in zip(case.new, case.cached, strict=True)]
    sizes = (case.heads, case.kv_heads, case.head_dim)
    for dtype in (torch.float32, torch.float16):
        tiles = make_tiles(case.new, lengths, *sizes, dtype, PLAIN, torch.device("cpu"))
        group = case.heads // case.kv_heads
        rows = [
            (s, row)
            for s, first in tiles.table.tolist()
            for row in range(first, min(first + tiles.block_m, case.new[s] * group))
        ]
        assert sorted(rows) == [(s, r) for s, n in enumerate(case.new) for r in range(n * group)]


def choices() -> Iterator[tuple[int, int, int, int]]:
    for length in (1, TILE, TILE + 1, 512, 8192, 131072):
        for sequences in (1, 3, 64):
            for kv_heads in (1, 8, 32):
                yield length, sequences, kv_heads, 132


def test_splits_have_tiles_and_fill_the_device() -> None:
    for length, sequences, kv_heads, multiprocessors in choices():
        splits = splits_for(length, sequences, kv_heads, multiprocessors)
        assert splits & (splits - 1) == 0
        assert 1 <= splits <= MOST_SPLITS
        assert splits == 1 or splits < 2 * -(-length // TILE)
    assert splits_for(8192, 64, 32, 132) == 1
    assert splits_for(8192, 1, 32, 132) == 8
    assert splits_for(512, 1, 8, 132) == 8

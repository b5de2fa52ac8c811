"""The emulator computes what CUDA does: norms, exchanges between lanes, roundings, bits."""

from pathlib import Path

import pytest
import torch

from llama2gpu.kernels.cuda import FOLDER, TYPES, CudaLaunch
from tests.cuda.emulator import EveryOrder
from tests.cuda.reports import EmulationError

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
COMMON = (FOLDER / "common.cuh").read_text(encoding="utf-8")
OWN = Path(__file__).with_name("intrinsics.cu").read_text(encoding="utf-8")
TEXT = COMMON + '#line 1 "intrinsics.cu"\n' + OWN.replace('#include "common.cuh"', "")


@pytest.fixture
def run(every_order: EveryOrder) -> EveryOrder:
    return EveryOrder({"intrinsics": TEXT})


def launch(kernel: str, threads: int, *arguments: torch.Tensor | int | float | None) -> CudaLaunch:
    return CudaLaunch("intrinsics", kernel, (1, 1, 1), threads, arguments)


def norm(
    run: EveryOrder, x: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype, threads: int = 128
) -> torch.Tensor:
    x = x.to(dtype)
    y = torch.full_like(x, torch.nan)
    rows, dim = x.shape
    arguments = (x, weight, y, dim, dim, 1e-5)
    run(CudaLaunch("norm", "rms_norm", (rows, 1, 1), threads, arguments, {"TYPE": TYPES[dtype]}))
    return y


@pytest.mark.parametrize("threads", [32, 128, 1024])
@pytest.mark.parametrize("dim", [1, 31, 64, 1000])
def test_norm(every_order: EveryOrder, dim: int, threads: int) -> None:
    made = torch.Generator().manual_seed(dim)
    x, weight = torch.randn(5, dim, generator=made), torch.randn(dim, generator=made)
    y = norm(every_order, x, weight, torch.float32, threads)
    wide = x.double()
    wanted = wide * (wide.square().mean(1, keepdim=True) + 1e-5).rsqrt() * weight
    torch.testing.assert_close(y.double(), wanted, rtol=5e-7, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_norm_rounds_to_nearest_even(every_order: EveryOrder, dtype: torch.dtype) -> None:
    """To the bit, from denormal numbers to infinity."""
    made = torch.Generator().manual_seed(1)
    x = torch.randn(8, 512, generator=made).bfloat16().half().float()
    weight = torch.randn(512, generator=made) * torch.logspace(-12, 7, 512)
    y = norm(every_order, x, weight, dtype)
    wanted = norm(every_order, x, weight, torch.float32).to(dtype)
    assert torch.equal(y, wanted)
    assert y.isinf().any() == (dtype is torch.float16)


def test_halves(run: EveryOrder) -> None:
    """All of them as floats, and floats about every one as halves; bfloat16 likewise."""
    halves = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    x = halves.view(torch.float16)
    wide = torch.full((x.numel(),), 7.0)
    run(launch("widen", 256, x, wide, x.numel()))
    torch.testing.assert_close(wide, x.float(), rtol=0, atol=0, equal_nan=True)

    finite = x[x.isfinite()].float()
    ties = (finite.double() + finite.view(torch.int32).sign() * 2.0**-25).float()
    bits = finite.view(torch.int32)
    tied = bits | 1 << 12
    brain = torch.arange(0, 1 << 32, (1 << 16) // 2 + 1)
    near = torch.cat((bits, tied, tied + 1, tied - 1, ties.view(torch.int32), brain.int()))
    floats = near.view(torch.float32)
    half, rounded = floats.half().fill_(1), floats.bfloat16().fill_(1)
    back = torch.ones_like(floats)
    run(launch("round_to", 512, floats, half, rounded, back, floats.numel()))
    for found, wanted in (
        (half, floats.half()),
        (rounded, floats.bfloat16()),
        (back, floats.half().float()),
    ):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)
        signed = ~wanted.isnan()
        assert torch.equal(found.signbit()[signed], wanted.signbit()[signed])


@pytest.mark.parametrize(("by", "width"), [(1, 32), (3, 8), (7, 16), (16, 32), (31, 32), (5, 4)])
def test_lanes(run: EveryOrder, by: int, width: int) -> None:
    threads = 64
    y, z = torch.zeros(threads, 12, dtype=torch.int32), torch.zeros(threads, dtype=torch.int64)
    run(launch("exchange", threads, y, z, by, width))
    for i in range(threads):
        warp, lane = i // 32 * 32, i % 32
        first = lane // width * width
        end = first + width
        sources = (
            first + by % width,
            lane ^ by if lane ^ by < end else lane,
            lane - by if lane - by >= first else lane,
            lane + by if lane + by < end else lane,
        )
        ballot = sum(1 << k for k in range(32) if (warp + k) % 3 == 0)
        apart = lane ^ 3 if lane < 16 else lane + 2 * (lane < 30)
        assert y[i].tolist() == [
            *(100 + warp + source for source in sources),
            ballot - (1 << 32) * (ballot >> 31),
            int(warp == 0),
            int(warp != 0),
            sum(range(100 + warp, 132 + warp)),
            -100 - warp,
            threads // 2,
            1,
            100 + warp + apart,
        ], i
        assert z[i] == (1 << 40) + (i ^ 1)


def test_block_sum_needs_both_barriers(run: EveryOrder) -> None:
    """One before its numbers are read, and one before the next call's replace them."""
    written = "    if (lane == 0) parts[warp] = x;\n"
    barrier = "    __syncthreads();\n"
    assert barrier + written + barrier in TEXT
    y = torch.zeros(64)
    run(launch("sums", 64, y))
    assert y.tolist() == [63 * 64 / 2 + 64] * 64
    for lacking in (written + barrier, barrier + written):
        with pytest.raises(EmulationError, match="depends on order"):
            EveryOrder({"intrinsics": TEXT.replace(lacking, written)})(launch("sums", 64, y))


def test_integers(run: EveryOrder) -> None:
    """Ties to even; what is out of range stops at its end, and what is no number is 0."""
    pairs = {0.5: 0, 1.5: 2, 2.5: 2, -0.5: 0, -1.5: -2, 1e-40: 0, 3e9: 2**31 - 1, -3e9: -(2**31)}
    x = torch.tensor([*pairs, torch.nan, torch.inf, 8388609.0])
    y = torch.full((len(x),), 5, dtype=torch.int32)
    run(launch("integers", 32, x, y, len(x)))
    assert y.tolist() == [*pairs.values(), 0, 2**31 - 1, 8388609]


def test_bits(run: EveryOrder) -> None:
    a, b = 0x12345678, 0x0ABCDEF1
    y = torch.zeros(10, dtype=torch.int32)
    run(launch("bits", 1, y, a, b))
    signed = [int.from_bytes(bytes([v]), signed=True) for v in (*a.to_bytes(4), *b.to_bytes(4))]
    assert y.tolist() == [
        a * b >> 32,
        a.bit_count(),
        3 + 3200,
        0xDE56F178 - (1 << 32),
        0xBCDEF112 - (1 << 32),
        0xF1123456 - (1 << 32),
        int(f"{a:032b}"[::-1], 2),
        int(torch.tensor(0x78 * 2.0**-49).view(torch.int32)),
        5 + sum(p * q for p, q in zip(signed[:4], signed[4:], strict=True)),
        1,
    ]


def test_atomics(every_order: EveryOrder) -> None:
    """Their results, which do not depend on order but for who is first."""
    y, z = torch.zeros(2, dtype=torch.int32), torch.zeros(4, dtype=torch.int32)
    total = torch.zeros(1)
    every_order.first.sources["intrinsics"] = TEXT
    every_order.first(launch("atomics", 64, y, z, total))
    assert y.tolist() == [63, -63]
    assert z.tolist() == [-1, 1, 7, 64 % 10]
    assert total == 32.0


def test_denormal_numbers_where_torch_flushes_them(run: EveryOrder) -> None:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush denormal numbers")
    try:
        test_bits(run)
    finally:
        torch.set_flush_denormal(False)

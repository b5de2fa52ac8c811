"""What the attention kernels compile to, on every architecture; needs no GPU."""

from typing import NamedTuple

import pytest
import torch

from llama2gpu.kernels.arch import ARCHS, Arch
from llama2gpu.kernels.attention import decode_attention
from llama2gpu.kernels.launch import INTERPRETED, Launch, recording
from llama2gpu.kernels.machine_code import machine_code
from llama2gpu.kernels.prefill import make_tiles, prefill_attention
from llama2gpu.kernels.splits import make_workspace
from llama2gpu.measure.binary import Stream, read_binary
from llama2gpu.ops.paged import LayerCache

pytestmark = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET is set: nothing compiles")

KV_HEADS, GROUP, PAGE, PAGES, NEW, CACHED = 8, 4, 64, 33, 256, 1024


class Use(NamedTuple):
    """Attention of tokens in a type over a cache in a type, by head size."""

    dtype: torch.dtype
    kv_dtype: torch.dtype
    head_dim: int


DECODES = (
    Use(torch.bfloat16, torch.bfloat16, 128),
    Use(torch.bfloat16, torch.int8, 64),
    Use(torch.float16, torch.int8, 256),
)
PREFILLS = (
    Use(torch.bfloat16, torch.bfloat16, 64),
    Use(torch.bfloat16, torch.int8, 128),
    Use(torch.float16, torch.float16, 256),
)


def name_of(value: object) -> str:
    if not isinstance(value, Use):
        return str(value)
    kinds = (str(kind).removeprefix("torch.") for kind in value[:2])
    return "-".join((*kinds, str(value.head_dim)))


def meta(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def cache_of(use: Use) -> LayerCache:
    k, v = (meta(use.kv_dtype, PAGES, KV_HEADS, PAGE, use.head_dim) for _ in range(2))
    if use.kv_dtype != torch.int8:
        return LayerCache(k, v)
    return LayerCache(k, v, *(meta(torch.float32, PAGES, KV_HEADS, PAGE) for _ in range(2)))


def decode(use: Use, arch: Arch) -> Launch:
    heads, device = KV_HEADS * GROUP, torch.device("meta")
    workspace = make_workspace(1, heads, KV_HEADS, use.head_dim, 8, device)
    lengths, table = meta(torch.int32, 1), meta(torch.int32, 1, PAGES)
    with recording() as launches:
        decode_attention(
            meta(use.dtype, 1, heads, use.head_dim), cache_of(use), lengths, table,
            splits=8, workspace=workspace, arch=arch, pdl=arch.pdl,
        )  # fmt: skip
    return launches[0]


def prefill(use: Use, arch: Arch) -> Launch:
    heads, device, cache = KV_HEADS * GROUP, torch.device("meta"), cache_of(use)
    tiles = make_tiles(
        (NEW,), (CACHED,), heads, KV_HEADS, use.head_dim, use.dtype, arch, device,
        quantized=cache.k_scale is not None,
    )  # fmt: skip
    starts, lengths, table = (meta(torch.int32, *n) for n in ((2,), (1,), (1, PAGES)))
    with recording() as launches:
        prefill_attention(
            meta(use.dtype, NEW, heads, use.head_dim), cache, starts, lengths, table, tiles,
            arch=arch, pdl=arch.pdl,
        )  # fmt: skip
    return launches[0]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("use", DECODES, ids=name_of)
def test_decode_keeps_to_registers(use: Use, arch: str) -> None:
    launch = decode(use, ARCHS[arch])
    code = machine_code(launch, ARCHS[arch])
    assert code.spill_bytes == 0
    assert code.shared_bytes <= ARCHS[arch].shared
    if not ARCHS[arch].is_cuda:
        return
    streams = {
        name: Stream(x.nbytes, 8 * x.itemsize)
        for name, x in launch.arguments.items()
        if isinstance(x, torch.Tensor)
    }
    binary = read_binary(code, streams)
    assert binary.has_loop
    assert binary.matrix_op == "HMMA"
    assert binary.barriers_in_loop == 0
    if use.dtype == torch.float16 or arch in ("sm_80", "sm_86", "sm_89"):
        assert code.assembly.count(" I2F.") < 16, "codes converted at a quarter of the rate"


def test_long_heads_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tightest: heads of 256 whose keys no other shares, where ptxas aims at 168 registers."""
    monkeypatch.setattr(f"{__name__}.GROUP", 1)
    for arch in (ARCHS["sm_90"], ARCHS["sm_120"]):
        launch = decode(Use(torch.bfloat16, torch.bfloat16, 256), arch)
        assert machine_code(launch, arch).spill_bytes == 0


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("use", PREFILLS, ids=name_of)
def test_prefill_keeps_to_registers(use: Use, arch: str) -> None:
    if arch == "gfx1100" and use.head_dim > 128:
        pytest.skip("its tensor cores take 16 queries of 256 twice: half of all registers")
    code = machine_code(prefill(use, ARCHS[arch]), ARCHS[arch])
    assert code.spill_bytes == 0
    assert code.shared_bytes <= ARCHS[arch].shared

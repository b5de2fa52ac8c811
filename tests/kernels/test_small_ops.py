"""The small Triton ops against the reference: interpreted, or on a GPU where there is one."""

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from llama2gpu.backends.inputs import Inputs
from llama2gpu.backends.numpy import NumpyBackend
from llama2gpu.backends.torch import TorchBackend
from llama2gpu.kernels.embed import embed
from llama2gpu.kernels.launch import INTERPRETED
from llama2gpu.kernels.norm import rms_norm
from llama2gpu.kernels.rope import rope as turn
from llama2gpu.kernels.rope import rope_write, write_kv
from llama2gpu.kernels.swiglu import silu_mul
from llama2gpu.ops.cases import CASES, Case
from llama2gpu.ops.paged import LayerCache
from llama2gpu.ops.tolerance import bound, error
from llama2gpu.quant import Int4, Int8, Weight
from llama2gpu.quant.weight import int4

GPU = torch.cuda.is_available() and not INTERPRETED
DEVICE = torch.device("cuda", 0) if GPU else torch.device("cpu")
REFERENCE = NumpyBackend(torch.device("cpu"), np.float64)

pytestmark = pytest.mark.skipif(
    not (GPU or INTERPRETED), reason="needs a GPU, or TRITON_INTERPRET=1 in the environment"
)
every_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name.replace(" ", "-"))
every_dtype = pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.float16,
        pytest.param(
            torch.bfloat16,
            marks=pytest.mark.skipif(
                not GPU, reason="needs a GPU: the interpreter truncates to bf16"
            ),
        ),
    ],
    ids=lambda d: str(d).removeprefix("torch."),
)


@pytest.fixture(autouse=True)
def _unwritten_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.empty` gives NaN, so an output that a kernel forgets to write shows."""
    plain = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        made: torch.Tensor = plain(*args, **kwargs)
        return made.fill_(torch.nan if made.is_floating_point() else -1)

    monkeypatch.setattr(torch, "empty", poisoned)


#: The ops by the contract's names of their arguments.
LAUNCH: dict[str, Callable[..., Any]] = {
    "embed": lambda tokens, weight: embed(tokens, weight, weight.data.dtype),
    "rms_norm": lambda x, norm: rms_norm(x, norm.weight, norm.eps),
    "rope": lambda x, rope, positions: turn(x, rope.cos, rope.sin, positions),
    "silu_mul": silu_mul,
    "write_kv": lambda k, v, batch, cache: write_kv(k, v, batch.slots, cache),
}
#: It leaves an embedding as it is, and tensors on its device.
PLACE = TorchBackend(DEVICE)


def inputs_of(op: str, case: Case, dtype: torch.dtype, **options: Any) -> Inputs:
    return Inputs(case, dtype, zlib.crc32(f"{op} {case.name}".encode()), **options)


def check(op: str, dtype: torch.dtype, found: torch.Tensor, wanted: torch.Tensor) -> None:
    if not found.is_floating_point():
        assert torch.equal(found, wanted)
        return
    measured, limit = error(found, wanted), bound(op, dtype)
    assert measured.largest <= limit.largest, measured
    assert measured.rms <= limit.rms, measured


def agree(op: str, inputs: Inputs) -> None:
    """What the kernel returns and writes is what the reference does."""
    arguments = inputs.arguments(op, PLACE)
    wide = inputs.arguments(op, REFERENCE, wide=True)
    returned, wanted = LAUNCH[op](**arguments), getattr(REFERENCE, op)(**wide)
    if op != "write_kv":
        assert returned.dtype == inputs.dtype
        check(op, inputs.dtype, returned.cpu(), wanted)
        return
    for out, reference in zip(arguments["cache"], wide["cache"], strict=True):
        assert (out is None) == (reference is None)
        if out is not None:
            check(op, inputs.dtype, out.cpu(), reference)


@every_dtype
@every_case
@pytest.mark.parametrize("op", LAUNCH)
def test_op(op: str, case: Case, dtype: torch.dtype) -> None:
    agree(op, inputs_of(op, case, dtype))


@every_dtype
@every_case
def test_write_int8_cache(case: Case, dtype: torch.dtype) -> None:
    agree("write_kv", inputs_of("write_kv", case, dtype, kv_dtype=torch.int8))


def test_vectors_of_an_int8_cache() -> None:
    """Ties go to even codes, next to nothing becomes nothing, and no code leaves ±127."""
    tiny = torch.finfo(torch.float32).tiny
    vectors = torch.tensor(
        [
            [127.0, 0.5, 1.5, -2.5],
            [-254.0, 1.0, 3.0, 253.0],
            [0.0, -0.0, 0.0, 0.0],
            [126 * tiny, tiny, 0.0, 0.0],
            [3e38, -3e38, 1.5e38, 0.0],
        ]
    )
    codes = [[127, 0, 2, -2], [-127, 0, 2, 126], [0] * 4, [0] * 4, [127, -127, 64, 0]]
    scales = torch.tensor([1.0, 2.0, 0.0, 0.0, 3e38]) / torch.tensor([1.0, 1.0, 1.0, 1.0, 127.0])
    shape = (1, 1, 8, 4)
    stored = [torch.zeros(shape, dtype=torch.int8, device=DEVICE) for _ in "kv"]
    by = [torch.full(shape[:-1], torch.nan, device=DEVICE) for _ in "kv"]
    k = vectors[:, None].to(DEVICE)
    write_kv(k, -k, torch.arange(5, device=DEVICE), LayerCache(*stored, *by))
    assert stored[0][0, 0, :5].tolist() == codes
    assert (-stored[1][0, 0, :5]).tolist() == codes
    assert by[0][0, 0, :5].tolist() == by[1][0, 0, :5].tolist() == scales.tolist()
    assert by[0][0, 0, 5:].isnan().all()


def test_int8_cache_of_many_vectors() -> None:
    """The reference's bytes, where scales and quotients round in every way."""
    case = Case("many", cached=(3,), new=(200,), heads=3, kv_heads=3, head_dim=20, page=16)
    inputs = inputs_of("write_kv", case, torch.float32, kv_dtype=torch.int8)
    for x in (inputs.k, inputs.v):
        x *= torch.logspace(-38, 30, 200)[:, None, None]
    agree("write_kv", inputs)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_is_no_number_stays_none() -> None:
    shape = (1, 2, 8, 4)
    stored = [torch.zeros(shape, dtype=torch.int8, device=DEVICE) for _ in "kv"]
    by = [torch.zeros(shape[:-1], device=DEVICE) for _ in "kv"]
    k = torch.ones(1, 2, 4, device=DEVICE)
    v = k.clone()
    v[0, 0, 3], v[0, 1, 3] = torch.nan, torch.inf
    write_kv(k, v, torch.zeros(1, dtype=torch.int64, device=DEVICE), LayerCache(*stored, *by))
    assert by[0][0, :, 0].isfinite().all()
    assert not by[1][0, :, 0].isfinite().any()


@every_dtype
@pytest.mark.parametrize("kv_dtype", [None, torch.int8], ids=["plain", "int8"])
@every_case
def test_rope_write_is_rope_and_write_kv(
    case: Case, kv_dtype: torch.dtype | None, dtype: torch.dtype
) -> None:
    """On heads side by side in one row, as a projection leaves them."""
    inputs = inputs_of("qkv", case, dtype, kv_dtype=kv_dtype)
    kv_heads, heads = case.kv_heads, case.heads
    y = torch.cat((inputs.q, inputs.k, inputs.v), dim=1).to(DEVICE)
    arguments = inputs.arguments("qkv", PLACE)
    batch, (cos, sin) = arguments["batch"], arguments["rope"]
    turned = turn(y[:, :-kv_heads], cos, sin, batch.positions)
    both = [LayerCache(*inputs.arguments("qkv", PLACE)["cache"]) for _ in range(2)]
    write_kv(turned[:, heads:], y[:, -kv_heads:], batch.slots, both[0])
    q = rope_write(y.flatten(1), cos, sin, batch.positions, batch.slots, both[1])
    assert torch.equal(q, turned[:, :heads])
    for apart, fused in zip(*both, strict=True):
        assert apart is fused is None or torch.equal(apart, fused)
    reference = inputs.arguments("rope", REFERENCE, wide=True)
    check("rope", dtype, q.cpu(), REFERENCE.rope(**reference))


def quantized(case: Case, kind: str) -> Weight:
    """A table of one kind; the order of columns is shuffled where the kind says so."""
    made = torch.Generator().manual_seed(zlib.crc32(f"{case.name} {kind}".encode()))
    groups, rows = 3, case.vocab
    scales = torch.rand(rows, groups, generator=made) + 0.1
    if kind == "int8":
        codes = torch.randint(-127, 128, (rows, groups * 10), generator=made)
        return Int8(codes.to(torch.int8), scales.half())
    columns = groups * 64
    values = torch.randint(16, (rows, columns), generator=made)
    zeros = torch.randint(16, (rows, groups), generator=made)
    weight: Int4 = int4(values, scales.bfloat16(), None if kind == "int4" else zeros)
    if kind == "int4 in another order":
        order = torch.randperm(columns, generator=made)
        return Int4(weight.packed, weight.scales, weight.zeros, order)
    return weight


@pytest.mark.parametrize("kind", ["int8", "int4", "int4 with zeros", "int4 in another order"])
@every_case
def test_quantized_embedding(case: Case, kind: str) -> None:
    weight = quantized(case, kind)
    tokens = inputs_of(kind, case, torch.float32).tokens
    wanted = weight.dequantize(torch.float32)[tokens]
    found = embed(tokens.to(DEVICE), weight.to(DEVICE), torch.float32)
    assert torch.equal(found.cpu(), wanted)
    halved = embed(tokens.to(DEVICE), weight.to(DEVICE), torch.float16)
    assert torch.equal(halved.cpu(), wanted.half())


@pytest.mark.parametrize("dim", [1, 5632, 8192, 10240])
def test_norm_of_wide_rows(dim: int) -> None:
    case = Case("wide", cached=(0,), new=(3,), dim=dim, vocab=1, hidden=1)
    agree("rms_norm", inputs_of("rms_norm", case, torch.float16))


def test_norm_of_strided_rows() -> None:
    rows = torch.randn(5, 3 * 48, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    weight, x = torch.ones(48, device=DEVICE), rows[:, 48:96]
    assert torch.equal(rms_norm(x, weight, 1e-5), rms_norm(x.contiguous(), weight, 1e-5))


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_gates_of_any_size() -> None:
    gates = torch.tensor([-1e4, -100.0, -88.0, 0.0, 88.0, 1e4])
    x = torch.stack((gates, torch.ones(6)), dim=1).view(1, 12).to(DEVICE)
    wanted = gates.double() * torch.sigmoid(gates.double())
    check("silu_mul", torch.float32, silu_mul(x)[0].cpu(), wanted)

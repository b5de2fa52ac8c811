"""What the small kernels of every kind are held to: the reference, case by case."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from llama2gpu.backends.inputs import Inputs
from llama2gpu.backends.numpy import NumpyBackend
from llama2gpu.backends.torch import TorchBackend
from llama2gpu.ops.cases import CASES, Case
from llama2gpu.ops.paged import LayerCache
from llama2gpu.ops.tolerance import bound, error
from llama2gpu.quant import Int4, Int8, Weight
from llama2gpu.quant.weight import int4

REFERENCE = NumpyBackend(torch.device("cpu"), np.float64)

every_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name.replace(" ", "-"))
every_op = pytest.mark.parametrize("op", ["embed", "rms_norm", "rope", "silu_mul", "write_kv"])
every_cache = pytest.mark.parametrize("kv_dtype", [None, torch.int8], ids=["plain", "int8"])
every_table = pytest.mark.parametrize(
    "kind", ["int8", "int4", "int4 with zeros", "int4 in another order"]
)
wide_rows = pytest.mark.parametrize("dim", [1, 5632, 8192, 10240])


@dataclass(frozen=True)
class Kernels:
    """Launchers of one kind, with the arguments that Triton's have; where their tensors lie."""

    place: torch.device
    embed: Callable[..., torch.Tensor]
    rms_norm: Callable[..., torch.Tensor]
    rope: Callable[..., torch.Tensor]
    silu_mul: Callable[..., torch.Tensor]
    write_kv: Callable[..., None]
    rope_write: Callable[..., torch.Tensor]

    def launch(self, op: str, a: dict[str, Any]) -> torch.Tensor | None:
        """An op by the contract's names of its arguments."""
        if op == "embed":
            return self.embed(a["tokens"], a["weight"], a["weight"].data.dtype)
        if op == "rms_norm":
            return self.rms_norm(a["x"], a["norm"].weight, a["norm"].eps)
        if op == "rope":
            return self.rope(a["x"], a["rope"].cos, a["rope"].sin, a["positions"])
        if op == "silu_mul":
            return self.silu_mul(a["x"])
        self.write_kv(a["k"], a["v"], a["batch"].slots, a["cache"])
        return None

    @property
    def backend(self) -> TorchBackend:
        """It leaves an embedding as it is, and tensors on its device."""
        return TorchBackend(self.place)


def every_dtype(*dtypes: torch.dtype) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "dtype", dtypes, ids=lambda dtype: str(dtype).removeprefix("torch.")
    )


def inputs_of(op: str, case: Case, dtype: torch.dtype, **options: Any) -> Inputs:
    return Inputs(case, dtype, zlib.crc32(f"{op} {case.name}".encode()), **options)


def check(op: str, dtype: torch.dtype, found: torch.Tensor, wanted: torch.Tensor) -> None:
    if not found.is_floating_point():
        assert torch.equal(found, wanted)
        return
    measured, limit = error(found, wanted), bound(op, dtype)
    assert measured.largest <= limit.largest, measured
    assert measured.rms <= limit.rms, measured


def agree(kernels: Kernels, op: str, inputs: Inputs) -> None:
    """What the kernel returns and writes is what the reference does."""
    arguments = inputs.arguments(op, kernels.backend)
    wide = inputs.arguments(op, REFERENCE, wide=True)
    returned, wanted = kernels.launch(op, arguments), getattr(REFERENCE, op)(**wide)
    if returned is not None:
        assert returned.dtype == inputs.dtype
        check(op, inputs.dtype, returned.cpu(), wanted)
        return
    for out, reference in zip(arguments["cache"], wide["cache"], strict=True):
        assert (out is None) == (reference is None)
        if out is not None:
            check(op, inputs.dtype, out.cpu(), reference)


def check_op(kernels: Kernels, op: str, case: Case, dtype: torch.dtype) -> None:
    agree(kernels, op, inputs_of(op, case, dtype))


def check_int8_cache(kernels: Kernels, case: Case, dtype: torch.dtype) -> None:
    agree(kernels, "write_kv", inputs_of("write_kv", case, dtype, kv_dtype=torch.int8))


def empty_int8_cache(kernels: Kernels, heads: int, scale: float) -> LayerCache:
    """A page of 8 vectors of 4 numbers for each head, with scales that nobody wrote."""
    shape = (1, heads, 8, 4)
    stored = [torch.zeros(shape, dtype=torch.int8, device=kernels.place) for _ in "kv"]
    by = [torch.full(shape[:-1], scale, device=kernels.place) for _ in "kv"]
    return LayerCache(*stored, *by)


def check_vectors_of_an_int8_cache(kernels: Kernels) -> None:
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
    cache = empty_int8_cache(kernels, 1, torch.nan)
    k = vectors[:, None].to(kernels.place)
    kernels.write_kv(k, -k, torch.arange(5, device=kernels.place), cache)
    assert cache.k_scale is not None
    assert cache.v_scale is not None
    assert cache.k[0, 0, :5].tolist() == codes
    assert (-cache.v[0, 0, :5]).tolist() == codes
    assert cache.k_scale[0, 0, :5].tolist() == scales.tolist()
    assert cache.v_scale[0, 0, :5].tolist() == scales.tolist()
    assert cache.k_scale[0, 0, 5:].isnan().all()


def check_int8_cache_of_many_vectors(kernels: Kernels) -> None:
    """The reference's bytes, where scales and quotients round in every way."""
    case = Case("many", cached=(3,), new=(200,), heads=3, kv_heads=3, head_dim=20, page=16)
    inputs = inputs_of("write_kv", case, torch.float32, kv_dtype=torch.int8)
    for x in (inputs.k, inputs.v):
        x *= torch.logspace(-38, 30, 200)[:, None, None]
    agree(kernels, "write_kv", inputs)


def check_what_is_no_number_stays_none(kernels: Kernels) -> None:
    cache = empty_int8_cache(kernels, 2, 0.0)
    k = torch.ones(1, 2, 4, device=kernels.place)
    v = k.clone()
    v[0, 0, 3], v[0, 1, 3] = torch.nan, torch.inf
    kernels.write_kv(k, v, torch.zeros(1, dtype=torch.int64, device=kernels.place), cache)
    assert cache.k_scale is not None
    assert cache.v_scale is not None
    assert cache.k_scale[0, :, 0].isfinite().all()
    assert not cache.v_scale[0, :, 0].isfinite().any()


def check_rope_write(
    kernels: Kernels, case: Case, kv_dtype: torch.dtype | None, dtype: torch.dtype
) -> None:
    """`rope` and `write_kv`, on heads side by side in one row, as a projection leaves them."""
    inputs = inputs_of("qkv", case, dtype, kv_dtype=kv_dtype)
    kv_heads, heads = case.kv_heads, case.heads
    y = torch.cat((inputs.q, inputs.k, inputs.v), dim=1).to(kernels.place)
    arguments = inputs.arguments("qkv", kernels.backend)
    batch, (cos, sin) = arguments["batch"], arguments["rope"]
    turned = kernels.rope(y[:, :-kv_heads], cos, sin, batch.positions)
    both = [LayerCache(*inputs.arguments("qkv", kernels.backend)["cache"]) for _ in range(2)]
    kernels.write_kv(turned[:, heads:], y[:, -kv_heads:], batch.slots, both[0])
    q = kernels.rope_write(y.flatten(1), cos, sin, batch.positions, batch.slots, both[1])
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


def check_quantized_embedding(kernels: Kernels, case: Case, kind: str) -> None:
    weight = quantized(case, kind)
    tokens = inputs_of(kind, case, torch.float32).tokens
    wanted = weight.dequantize(torch.float32)[tokens]
    place = kernels.place
    found = kernels.embed(tokens.to(place), weight.to(place), torch.float32)
    assert torch.equal(found.cpu(), wanted)
    halved = kernels.embed(tokens.to(place), weight.to(place), torch.float16)
    assert torch.equal(halved.cpu(), wanted.half())


def check_norm_of_wide_rows(kernels: Kernels, dim: int) -> None:
    case = Case("wide", cached=(0,), new=(3,), dim=dim, vocab=1, hidden=1)
    agree(kernels, "rms_norm", inputs_of("rms_norm", case, torch.float16))


def check_norm_of_strided_rows(kernels: Kernels) -> None:
    rows = torch.randn(5, 3 * 48, generator=torch.Generator().manual_seed(1)).to(kernels.place)
    weight, x = torch.ones(48, device=kernels.place), rows[:, 48:96]
    wanted = kernels.rms_norm(x.contiguous(), weight, 1e-5)
    assert torch.equal(kernels.rms_norm(x, weight, 1e-5), wanted)


def check_gates_of_any_size(kernels: Kernels) -> None:
    gates = torch.tensor([-1e4, -100.0, -88.0, 0.0, 88.0, 1e4])
    x = torch.stack((gates, torch.ones(6)), dim=1).view(1, 12).to(kernels.place)
    wanted = gates.double() * torch.sigmoid(gates.double())
    check("silu_mul", torch.float32, kernels.silu_mul(x)[0].cpu(), wanted)

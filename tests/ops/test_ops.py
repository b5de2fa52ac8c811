"""Every op × backend × case × type against the reference in float64."""

import zlib
from typing import Any

import numpy as np
import pytest
import torch

from llama2gpu.backends.base import OPS, Backend
from llama2gpu.backends.choose import available, backend_class
from llama2gpu.backends.inputs import Inputs
from llama2gpu.backends.numpy import NumpyBackend
from llama2gpu.backends.torch import TorchBackend
from llama2gpu.ops.cases import CASES, Case
from llama2gpu.ops.tolerance import bound, error
from tests.ops.forms import ARCHITECTURES, taking

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
REFERENCE = NumpyBackend(torch.device("cpu"), np.float64)


def devices() -> list[torch.device]:
    found = [torch.device("cpu")]
    if torch.cuda.is_available():
        found.append(torch.device("cuda", 0))
    if torch.backends.mps.is_available():
        found.append(torch.device("mps"))
    return found


BACKENDS = [
    pytest.param(backend_class(name), device, id=f"{name}-{device.type}")
    for name in available()
    for device in devices()
    if backend_class(name).probe(device).ok
]


class CompiledBackend(TorchBackend):
    """One that asks a CPU's compiled kernels from the start."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.compiled = True


@pytest.fixture(autouse=True)
def _unwritten_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.empty` and its like give NaN, so an output that an op forgets to write shows."""
    for name in ("empty", "empty_like"):
        plain = getattr(torch, name)

        def poisoned(*args: Any, _plain: Any = plain, **kwargs: Any) -> torch.Tensor:
            made: torch.Tensor = _plain(*args, **kwargs)
            return made.fill_(torch.nan) if made.is_floating_point() else made

        monkeypatch.setattr(torch, name, poisoned)


def outputs(op: str, arguments: dict[str, Any], backend: Backend) -> list[torch.Tensor]:
    """What the op returns and what it writes."""
    returned = getattr(backend, op)(**arguments)
    found = list(returned) if isinstance(returned, tuple) else [returned]
    if op in ("qkv", "write_kv"):
        found += arguments["cache"]
    return [x.cpu() for x in found if x is not None]


every_backend = pytest.mark.parametrize(("kind", "device"), BACKENDS)
every_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name.replace(" ", "-"))
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


def check(
    op: str,
    dtype: torch.dtype,
    found: torch.Tensor,
    wanted: torch.Tensor,
    *,
    quantized: bool = False,
) -> None:
    if not found.is_floating_point():
        assert torch.equal(found, wanted)
        return
    measured, limit = error(found, wanted), bound(op, dtype, quantized=quantized)
    assert measured.largest <= limit.largest, measured
    assert measured.rms <= limit.rms, measured


def agree(op: str, backend: Backend, inputs: Inputs, *, quantized: bool = False) -> None:
    """The op's outputs are the reference's, within the bound of the inputs' type."""
    found = outputs(op, inputs.arguments(op, backend), backend)
    wanted = outputs(op, inputs.arguments(op, REFERENCE, wide=True), REFERENCE)
    for out, reference in zip(found, wanted, strict=True):
        check(op, inputs.dtype, out, reference, quantized=quantized)


@every_dtype
@every_case
@pytest.mark.parametrize("op", OPS)
@every_backend
def test_op(
    op: str, kind: type[Backend], device: torch.device, case: Case, dtype: torch.dtype
) -> None:
    backend = kind(device)
    inputs = Inputs(case, dtype, seed=zlib.crc32(f"{op} {case.name}".encode()))
    agree(op, backend, inputs)


@every_dtype
@every_case
@pytest.mark.parametrize("way", ["rows", *ARCHITECTURES])
def test_row_kernels(way: str, case: Case, dtype: torch.dtype) -> None:
    """Dense matrices too small to be given to them otherwise, and the steps between."""
    with taking(way):
        for op in ("linear", "rope", "attend", "qkv", "project_add", "gate_up", "logits"):
            test_op(op, CompiledBackend, torch.device("cpu"), case, dtype)
        test_op_on_int8_cache("attend", CompiledBackend, torch.device("cpu"), case, dtype)


@every_dtype
@every_case
@pytest.mark.parametrize("op", ["write_kv", "attend", "attention"])
@every_backend
def test_op_on_int8_cache(
    op: str, kind: type[Backend], device: torch.device, case: Case, dtype: torch.dtype
) -> None:
    """The reference reads the same codes and scales; `write_kv` writes the same bytes."""
    backend = kind(device)
    inputs = Inputs(case, dtype, zlib.crc32(f"{op} {case.name}".encode()), torch.int8)
    agree(op, backend, inputs)


@every_dtype
@every_case
@every_backend
def test_qkv_on_int8_cache(
    kind: type[Backend], device: torch.device, case: Case, dtype: torch.dtype
) -> None:
    """The nearest code of the scale written, as far as the exact number is known in this type.

    Half a step of rounding is taken off the distance to what the reference writes unquantized:
    what is left is the float error, where a tie fell the other way too.
    """
    backend, seed = kind(device), zlib.crc32(case.name.encode())
    plain = Inputs(case, dtype, seed).arguments("qkv", REFERENCE, wide=True)
    arguments = Inputs(case, dtype, seed, torch.int8).arguments("qkv", backend)
    untouched = [x.cpu().clone() for x in arguments["cache"]]
    check("qkv", dtype, backend.qkv(**arguments).cpu(), REFERENCE.qkv(**plain))
    slots, page = plain["batch"].slots, case.page
    at = (slots // page, slice(None), slots % page)
    cache = [x.cpu() for x in arguments["cache"]]
    for codes, scale, exact in zip(cache[:2], cache[2:], plain["cache"][:2], strict=True):
        wanted, step = exact[at], scale[at].double()[..., None]
        check("qkv", dtype, step, wanted.abs().amax(dim=-1, keepdim=True) / 127)
        distance = (codes[at] * step - wanted).abs()
        excess = (distance - step * (0.5 + 1e-6)).clamp_min(0)
        check("qkv", dtype, wanted + excess, wanted)
    for part, before in zip(cache, untouched, strict=True):
        part[at] = before[at]
        assert torch.equal(part, before)


@every_backend
def test_vectors_of_an_int8_cache(kind: type[Backend], device: torch.device) -> None:
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
    codes = torch.tensor([[127, 0, 2, -2], [-127, 0, 2, 126], [0] * 4, [0] * 4, [127, -127, 64, 0]])
    scales = torch.tensor([1.0, 2.0, 0.0, 0.0, 3e38]) / torch.tensor([1.0, 1.0, 1.0, 1.0, 127.0])
    case = Case("vectors", cached=(0,), new=(5,), kv_heads=1, head_dim=4, page=8)
    arguments = Inputs(case, torch.float32, 0, torch.int8).arguments("write_kv", kind(device))
    arguments["k"], arguments["v"] = vectors[:, None].to(device), -vectors[:, None].to(device)
    kind(device).write_kv(**arguments)
    k, v, k_scale, v_scale = (x.cpu() for x in arguments["cache"])
    page = int(arguments["batch"].slots[0]) // 8
    assert k[page, 0, :5].tolist() == codes.tolist()
    assert v[page, 0, :5].tolist() == (-codes).tolist()
    assert k_scale[page, 0, :5].tolist() == v_scale[page, 0, :5].tolist() == scales.tolist()


@pytest.mark.filterwarnings("ignore:invalid value")
@every_backend
def test_what_is_no_number_stays_none(kind: type[Backend], device: torch.device) -> None:
    case = Case("nan", cached=(0,), new=(1,), kv_heads=2)
    arguments = Inputs(case, torch.float32, 0, torch.int8).arguments("write_kv", kind(device))
    arguments["v"][0, 0, 3], arguments["v"][0, 1, 3] = torch.nan, torch.inf
    kind(device).write_kv(**arguments)
    attended = Inputs(case, torch.float32, 0).arguments("attend", kind(device))
    out = kind(device).attend(attended["q"], arguments["batch"], arguments["cache"])
    assert not out.isfinite().all(dim=-1).any()

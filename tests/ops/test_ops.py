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
from llama2gpu.ops.cases import CASES, Case
from llama2gpu.ops.tolerance import bound, error

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


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name.replace(" ", "-"))
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("kind", "device"), BACKENDS)
def test_op(
    op: str, kind: type[Backend], device: torch.device, case: Case, dtype: torch.dtype
) -> None:
    backend = kind(device)
    inputs = Inputs(case, dtype, seed=zlib.crc32(f"{op} {case.name}".encode()))
    found = outputs(op, inputs.arguments(op, backend), backend)
    wanted = outputs(op, inputs.arguments(op, REFERENCE, wide=True), REFERENCE)
    assert len(found) == len(wanted)
    limit = bound(op, dtype)
    for out, reference in zip(found, wanted, strict=True):
        if not out.is_floating_point():
            assert torch.equal(out, reference)
            continue
        measured = error(out, reference)
        assert measured.largest <= limit.largest, (op, case.name, measured)
        assert measured.rms <= limit.rms, (op, case.name, measured)

"""The compiled row kernels with more tokens than one pass takes, at sizes that fill no tile."""

import pytest
import torch

from llama2gpu.backends.base import Norm
from llama2gpu.backends.cpu_rows import _multiply, cpu_matrix, probe_rows
from llama2gpu.quant import Dense


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("tokens", [5, 8, 11, 16, 18, 32])
@pytest.mark.parametrize(("rows", "columns"), [(2, 29), (34, 2048), (62, 2093), (48, 4131)])
def test_many_tokens(rows: int, columns: int, tokens: int, kind: torch.dtype) -> None:
    if not probe_rows().ok:
        pytest.skip(probe_rows().detail)
    random = torch.Generator().manual_seed(rows + tokens)
    weight = torch.randn(rows, columns, generator=random).to(kind)
    x = torch.randn(tokens, columns, generator=random).to(kind)
    residual = torch.randn(tokens, rows, generator=random).to(kind)
    matrix = cpu_matrix(Dense(weight))
    assert matrix is not None
    wide = x.double()
    plain = wide @ weight.double().T
    scale = (
        columns**0.5 * {torch.bfloat16: 2**-8, torch.float16: 2**-10, torch.float32: 2**-20}[kind]
    )
    packed = matrix.packed  # type: ignore[attr-defined]
    assert (_multiply(x, packed).double() - plain).abs().max() < 4 * scale
    added = _multiply(x, packed, residual=residual).double()
    assert (added - plain - residual.double()).abs().max() < 4 * scale
    norm = Norm(torch.rand(columns, generator=random) + 0.5, 1e-5)
    seen = wide / (wide.square().mean(1, keepdim=True) + norm.eps).sqrt() * norm.weight
    wanted = seen @ weight.double().T
    assert (_multiply(x, packed, norm).double() - wanted).abs().max() < 8 * scale
    gate, up = plain.chunk(2, 1)  # all gates first
    gated = _multiply(x, packed, gated=True).double()
    error = (gated - torch.nn.functional.silu(gate) * up).abs()
    assert (error < 8 * scale * (1 + gate.abs() + up.abs())).all()

"""Other software made up: modules and a program that take what the real ones take."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

#: A `llama-bench` that appends its arguments to a file beside it.
PROGRAM = """#!{python}
import json, pathlib, sys
words = sys.argv[1:]
log = pathlib.Path(__file__).with_name("log")
log.write_text(log.read_text() + json.dumps(words) + "\\n" if log.exists() else json.dumps(words) + "\\n")
if "--version" in words:
    sys.exit(print("version: 7 (abc)", file=sys.stderr))
if "--list-devices" in words:
    sys.exit(print("Available devices:\\n  {devices}"))
if {fails}:
    sys.exit("main: error: no such thing")
asked = dict(zip(words[::2], words[1::2]))
print(json.dumps([{{"avg_ts": 40.0 if asked["-n"] == "0" else 8.0}}]))
"""  # noqa: E501


def write_program(folder: Path, devices: str = "(none)", fails: bool = False) -> Path:
    """The program in a folder, to be found on PATH."""
    path = folder / "llama-bench"
    path.write_text(PROGRAM.format(python=sys.executable, devices=devices, fails=fails))
    path.chmod(0o755)
    return path


class A16W4_HQQ_INT:  # noqa: N801
    """gemlite.helper's, of gemlite 0.6."""

    offset = 0.0

    def __init__(self, device: Any = "cuda:0", dtype: torch.dtype | None = None) -> None:
        self.device, self.dtype = device, dtype

    def from_weights(
        self,
        W_q: Tensor,  # noqa: N803
        scales: Tensor,
        zeros: Tensor,
        bias: Tensor | None = None,
    ) -> Callable[[Tensor], Tensor]:
        assert (W_q.dtype, scales.dtype, zeros.dtype) == (torch.uint8, self.dtype, self.dtype)
        assert scales.shape == zeros.shape
        assert torch.device(self.device) == W_q.device
        wide = W_q.float().view(*scales.shape, -1) - zeros.float()[..., None] + self.offset
        matrix = (wide * scales.float()[..., None]).view(W_q.shape)
        return lambda x: (x.float() @ matrix.T).to(x.dtype)


def liger_rms_norm(
    X: Tensor, W: Tensor, eps: float, offset: float = 0.0,  # noqa: N803
    casting_mode: str = "llama", in_place: bool = True,
) -> Tensor:  # fmt: skip
    """liger_kernel's, of liger-kernel 0.8, as are the next two."""
    assert X.dtype == W.dtype
    return F.rms_norm(X.float(), W.shape, W.float() + offset, eps).to(X.dtype)


def liger_swiglu(a: Tensor, b: Tensor) -> Tensor:
    assert a.is_contiguous()
    assert b.is_contiguous()
    return F.silu(a) * b


def liger_rope(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, position_ids: Tensor | None = None,
    unsqueeze_dim: int = 1, rotary_dim: int | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """In place where heads lie as [1, T, heads, size], as the real one."""
    assert cos.shape == sin.shape == (1, q.shape[2], q.shape[3])
    for x in (q, k):
        assert x.transpose(1, 2).is_contiguous()
        left, right = x.float().chunk(2, dim=-1)
        turned = torch.cat((-right, left), dim=-1) * sin[:, None]
        x.copy_(x.float() * cos[:, None] + turned)
    return q, k


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both packages, as far as they are used."""
    gemlite, helper = ModuleType("gemlite"), ModuleType("gemlite.helper")
    helper.A16W4_HQQ_INT = A16W4_HQQ_INT  # type: ignore[attr-defined]
    names = ("liger_kernel", "liger_kernel.transformers", "liger_kernel.transformers.functional")
    packages = [ModuleType(name) for name in names]
    for one in (liger_rms_norm, liger_swiglu, liger_rope):
        setattr(packages[-1], one.__name__, one)
    for module in (gemlite, helper, *packages):
        monkeypatch.setitem(sys.modules, module.__name__, module)

"""What the bench of kernels stands on, made up: a timer, roofs, and backends that are wrong."""

from collections.abc import Sequence
from typing import ClassVar

import torch

from llama2gpu.backends.base import Norm, Prepared
from llama2gpu.backends.torch import TorchBackend
from llama2gpu.config import Config
from llama2gpu.measure.kernel_timer import Call, Times
from llama2gpu.measure.roofs import Roofs

TINY = Config(dim=64, hidden=96, layers=1, heads=4, kv_heads=2, head_dim=16, vocab=640, context=128)
ROOFS = Roofs(copy=3e9, read=4e9, matmul={"fp32": 1e12, "bf16": 2e12})
CPU = torch.device("cpu")


class FakeTimer:
    """Runs each call once, and says of each lot in turn how long it took; the last stays."""

    def __init__(self, *medians: float, cache: int = 1 << 10) -> None:
        self.cache, self.medians = cache, list(medians or (100.0,))
        self.calls: list[Sequence[Call]] = []

    def microseconds(self, calls: Sequence[Call]) -> Times:
        self.calls.append(calls)
        for call in calls:
            call()
        median = self.medians.pop(0) if len(self.medians) > 1 else self.medians[0]
        return Times(median, 0.9 * median, 1.1 * median)


class FakeRoofing:
    def __init__(self, device: torch.device, dtypes: object) -> None:
        pass

    def measure(self) -> Roofs:
        return ROOFS


class PlainBackend(TorchBackend):
    name: ClassVar[str] = "plain"


class WrongBackend(TorchBackend):
    """Logits a tenth too large, a row of silu_mul not written, no keys written, and rope fails."""

    name: ClassVar[str] = "wrong"

    def logits(self, x: torch.Tensor, norm: Norm, weight: Prepared) -> torch.Tensor:
        return super().logits(x, norm, weight) * 1.1

    def silu_mul(self, x: torch.Tensor) -> torch.Tensor:
        out = super().silu_mul(x)
        out[-1] = torch.nan
        return out

    def rope(self, *arguments: object, **named: object) -> torch.Tensor:
        raise RuntimeError("no such kernel")

    def write_kv(self, *arguments: object, **named: object) -> None:
        pass

"""The roofs over every kernel: what the device at hand reaches in copying, reading, multiplying."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch

from llama2gpu.measure.limits import fastest, matmul_peak, read_bandwidth
from llama2gpu.ops.cost import Cost

#: Bytes of the memory that is read and copied, by kind of device; else those of "cpu". Launching
#: takes microseconds, which a GPU must not notice.
BLOCK = {"cpu": 256 << 20, "cuda": 2 << 30}
#: Size of the square matrices, likewise.
SIZE = {"cpu": 1024, "cuda": 8192}
#: Times that each is done; the fastest counts.
REPEATS = 4


@dataclass(frozen=True)
class Roofs:
    """Bytes a second copied (read and written both count) and read; operations a second by type.

    matmul: of a square product by the name of its type, "fp32" among them.
    """

    copy: float
    read: float
    matmul: Mapping[str, float]

    @property
    def memory(self) -> float:
        """Bytes a second: the faster of copying and reading."""
        return max(self.copy, self.read)

    def compute(self, dtype: str) -> float:
        """Operations a second of a type: at least those of float32, to which it can be widened."""
        return max(self.matmul[dtype], self.matmul["fp32"])

    def bound(self, cost: Cost, dtype: str) -> str:
        """Which roof an op is under: "memory" or "compute"."""
        slower = cost.bytes / self.memory >= cost.flops / self.compute(dtype)
        return "memory" if slower else "compute"

    def seconds(self, cost: Cost, dtype: str) -> float:
        """The least time that an op can take under them."""
        return max(cost.bytes / self.memory, cost.flops / self.compute(dtype))

    def fields(self) -> dict[str, Any]:
        """What is told in JSON."""
        return asdict(self)


class Roofing:
    """Measures the roofs of a device, again and again on the same memory of random bits."""

    def __init__(self, device: torch.device, dtypes: Mapping[str, torch.dtype]) -> None:
        self.device, self.dtypes = device, {"fp32": torch.float32, **dtypes}
        words = BLOCK.get(device.type, BLOCK["cpu"]) // 8
        random = torch.Generator(device).manual_seed(0)
        self.block = torch.randint(
            -(1 << 62), 1 << 62, (words,), dtype=torch.int64, device=device, generator=random
        )
        self.target = torch.empty_like(self.block)

    def measure(self) -> Roofs:
        """The roofs as they are now."""
        size = SIZE.get(self.device.type, SIZE["cpu"])
        return Roofs(
            copy=2 * self.block.nbytes / fastest(self._copy, self.device, REPEATS),
            read=read_bandwidth([self.block], REPEATS),
            matmul={
                name: matmul_peak(self.device, dtype, size, REPEATS)
                for name, dtype in self.dtypes.items()
            },
        )

    def _copy(self) -> object:
        return self.target.copy_(self.block)


def higher(one: Roofs, other: Roofs) -> Roofs:
    """The higher of each roof."""
    return Roofs(
        copy=max(one.copy, other.copy),
        read=max(one.read, other.read),
        matmul={name: max(rate, other.matmul[name]) for name, rate in one.matmul.items()},
    )


def middle(many: Sequence[Roofs]) -> Roofs:
    """The median of each roof."""
    names = many[0].matmul
    return Roofs(
        copy=median(r.copy for r in many),
        read=median(r.read for r in many),
        matmul={name: median(r.matmul[name] for r in many) for name in names},
    )

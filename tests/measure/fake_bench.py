"""A bench that measures nothing: what runs and how long it takes is said beforehand."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from llama2gpu.kernels.launch import Launch
from llama2gpu.kernels.tiling import Tile

#: What the kernels write to.
OUTPUTS = ("p_y", "p_q", "p_logits", "p_k_cache", "p_v_cache")


def tile_of(launch: Launch) -> Tile:
    """The tile that a matrix kernel is launched with."""
    constants = launch.plan.constants
    plan = (launch.plan.num_warps, launch.plan.num_stages)
    return Tile(constants["BLOCK_N"], constants["BLOCK"], *plan)


def write(launches: Sequence[Launch], results: Mapping[Tile, float]) -> None:
    """Leaves one number in all outputs of each launch: 1, or what its tile's result is."""
    for launch in launches:
        for name in OUTPUTS:
            if name in launch.arguments:
                launch.arguments[name].fill_(results.get(tile_of(launch), 1.0))


class FakeBench:
    """times: microseconds by tile, several in turn; else 100. results: numbers that tiles give, 1
    of others. failing: tiles that do not run. run: instead of all that, what runs.
    """

    def __init__(
        self,
        device: torch.device | None = None,
        times: Mapping[Tile, Sequence[float]] | None = None,
        results: Mapping[Tile, float] | None = None,
        failing: Sequence[Tile] = (),
        run: Callable[[Sequence[Launch]], Any] | None = None,
    ) -> None:
        self.device = device or torch.device("cpu")
        self.times = {tile: list(numbers) for tile, numbers in (times or {}).items()}
        self.results, self.failing, self.real = results or {}, failing, run
        self.timed: list[Tile] = []
        self.compiled: list[Tile] = []
        self.rounds: list[Sequence[Sequence[Launch]]] = []

    def sets(self, nbytes: int) -> int:
        return 2

    def compile(self, launches: Sequence[Launch]) -> None:
        self.compiled += map(tile_of, launches)

    def run(self, launches: Sequence[Launch]) -> None:
        if self.real is not None:
            self.real(launches)
            return
        for launch in launches:
            if tile_of(launch) in self.failing:
                raise RuntimeError("out of resource: shared memory")
        write(launches, self.results)

    def microseconds(self, rounds: Sequence[Sequence[Launch]]) -> float:
        tile = tile_of(rounds[0][-1])
        self.timed.append(tile)
        self.rounds.append(rounds)
        left = self.times.get(tile, [100.0])
        return left.pop(0) if len(left) > 1 else left[0]

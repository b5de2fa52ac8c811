"""Well-known cards, and the share of their bandwidth that issuing instructions permits."""

from dataclasses import dataclass

#: The share of a datasheet's bandwidth that reading reaches in practice: 4.3 of an H200's 4.8 TB/s.
REACHED = 0.9


@dataclass(frozen=True)
class Card:
    """A card with its datasheet's figures.

    arch: its kernels' architecture. bandwidth: bytes a second. units: multiprocessors, or compute
    units. clock: Hz, boosted. lanes: instructions that a unit issues each clock, times lanes.
    """

    name: str
    arch: str
    bandwidth: float
    units: int
    clock: float
    lanes: int = 128

    @property
    def issue(self) -> float:
        """Lane instructions a second."""
        return self.units * self.lanes * self.clock

    def budget(self, bytes_per_value: float) -> float:
        """Lane instructions that each value may take while memory still is the limit."""
        return self.issue * bytes_per_value / (REACHED * self.bandwidth)


#: NVIDIA: four schedulers a multiprocessor, each a warp instruction a clock. Sources: the H200,
#: H100, A100 (SXM, 80 GB), V100, T4, B200 and L40S datasheets; NVIDIA's Turing, Ampere GA102, Ada
#: and RTX Blackwell whitepapers. AMD: four SIMDs of 16 lanes a compute unit (MI300X; CDNA 3
#: whitepaper), or two of 32 (RX 7900 XTX; RDNA 3 ISA guide); instructions of the scalar unit are
#: issued beside these.
CARDS = (
    Card("V100", "sm_70", 0.9e12, 80, 1.53e9),
    Card("T4", "sm_75", 0.32e12, 40, 1.59e9),
    Card("RTX 2080 Ti", "sm_75", 0.616e12, 68, 1.545e9),
    Card("A100", "sm_80", 2.039e12, 108, 1.41e9),
    Card("RTX 3090", "sm_86", 0.936e12, 82, 1.695e9),
    Card("RTX 4090", "sm_89", 1.008e12, 128, 2.52e9),
    Card("L40S", "sm_89", 0.864e12, 142, 2.52e9),
    Card("H200", "sm_90", 4.8e12, 132, 1.98e9),
    Card("H100", "sm_90", 3.35e12, 132, 1.98e9),
    Card("B200", "sm_100", 8.0e12, 148, 1.965e9),
    Card("RTX 5090", "sm_120", 1.792e12, 170, 2.407e9),
    Card("MI300X", "gfx942", 5.3e12, 304, 2.1e9, lanes=64),
    Card("RX 7900 XTX", "gfx1100", 0.96e12, 96, 2.5e9, lanes=64),
)


def bandwidth_bound(arch: str, instr_per_value: float, bytes_per_value: float) -> dict[str, float]:
    """For each card of an architecture, the share of its reachable bandwidth, at most 1.

    What keeps the schedulers busy without a gap: latency and other limits come on top.
    """
    return {
        card.name: min(1.0, card.budget(bytes_per_value) / instr_per_value)
        for card in CARDS
        if card.arch == arch
    }

"""The shape of a Llama, as every checkpoint format describes it."""

from dataclasses import dataclass
from typing import Literal

from llama2gpu.errors import CheckpointError

RopeType = Literal["linear", "llama3", "yarn"]

#: Largest value of each field that a reader believes; far above any published Llama.
LIMITS = {
    "dim": 1 << 18,
    "hidden": 1 << 21,
    "layers": 1 << 12,
    "heads": 1 << 13,
    "kv_heads": 1 << 13,
    "head_dim": 1 << 10,
    "vocab": 1 << 23,
    "context": 1 << 30,
}


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained context.

    The fields carry Hugging Face's names and meanings; those of other types are ignored.
    """

    type: RopeType
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


@dataclass(frozen=True)
class Config:
    """Sizes and constants of one Llama.

    Raises `CheckpointError` where the numbers can't describe one.
    """

    dim: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tied: bool = False

    def __post_init__(self) -> None:
        for name, limit in LIMITS.items():
            value = getattr(self, name)
            if not 0 < value <= limit:
                raise CheckpointError(
                    f"{name} is {value}, outside 1 to {limit}: the header is damaged, "
                    "or this is another format"
                )
        if self.heads % self.kv_heads:
            raise CheckpointError(
                f"{self.heads} heads can't share {self.kv_heads} key-value heads evenly: "
                "the header is damaged, or this is another format"
            )
        if self.head_dim % 2:
            raise CheckpointError(f"head_dim is {self.head_dim}, but RoPE rotates pairs")
        if not 0.0 < self.norm_eps < 1.0:
            raise CheckpointError(f"norm_eps is {self.norm_eps}, outside 0 to 1")
        if not 1.0 < self.rope_theta < float("inf"):
            raise CheckpointError(f"rope_theta is {self.rope_theta}, but it must be above 1")

    @property
    def q_rows(self) -> int:
        """Rows of the query projection."""
        return self.heads * self.head_dim

    @property
    def kv_rows(self) -> int:
        """Rows of the key projection, and of the value projection."""
        return self.kv_heads * self.head_dim

    @property
    def parameters(self) -> int:
        """Number of weights, a tied embedding counted once."""
        layer = 2 * self.dim * (self.q_rows + self.kv_rows) + 3 * self.dim * self.hidden
        embeddings = self.vocab * self.dim * (1 if self.tied else 2)
        return embeddings + self.layers * (layer + 2 * self.dim) + self.dim

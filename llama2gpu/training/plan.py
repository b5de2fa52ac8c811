"""What a training is asked for."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from llama2gpu.config import Config
from llama2gpu.errors import RequestError
from llama2gpu.training.loop import Settings


@dataclass(frozen=True)
class Shape:
    """Sizes of a new model; the vocabulary is its tokenizer's."""

    dim: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    hidden: int = 640
    tied: bool = True

    def check(self) -> None:
        """Raises `RequestError` for sizes that do not divide."""
        if self.dim % self.heads or self.dim // self.heads % 2:
            raise RequestError(
                f"--dim {self.dim} does not divide into {self.heads} heads of an even size: "
                "change --dim or --heads"
            )
        if self.heads % self.kv_heads:
            raise RequestError(
                f"{self.heads} heads can't share {self.kv_heads} key-value heads evenly: "
                "change --heads or --kv-heads"
            )

    def config(self, vocab: int, context: int) -> Config:
        """The configuration of a model with this vocabulary and context."""
        head_dim = self.dim // self.heads
        return Config(**asdict(self), head_dim=head_dim, vocab=vocab, context=context)


@dataclass(frozen=True)
class Plan:
    """Everything that a training is asked for.

    tokenizer: a file or folder, instead of training one. init_from: a checkpoint to go on from.
    """

    texts: tuple[Path, ...]
    out: Path
    settings: Settings
    shape: Shape
    context: int
    vocab: int
    held_out: float
    save_every: int
    device: torch.device
    stored: torch.dtype
    tokenizer: Path | None = None
    init_from: str | None = None

    def check(self, base: Config | None) -> None:
        """Raises `RequestError` for sizes that do not go together, or not with the checkpoint."""
        if base is None:
            self.shape.check()
        elif self.context > base.context:
            raise RequestError(
                f"--context {self.context} is more than the {base.context} positions of "
                f"{self.init_from}: give --context {base.context} or less"
            )

    @property
    def arguments(self) -> dict[str, Any]:
        """What decides the result, in plain values; resuming must repeat it."""
        own = asdict(self.settings) | asdict(self.shape)
        own |= {"context": self.context, "vocab": self.vocab, "held-out": self.held_out}
        own |= {"device": self.device.type, "dtype": str(self.settings.dtype)}
        return own | {
            "init-from": self.init_from,
            "tokenizer": self.tokenizer and str(self.tokenizer),
        }

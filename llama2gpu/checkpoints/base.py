"""What every reader gives: a configuration, and tensors by their canonical names.

Canonical names, for layer N of L (shapes as `Config` names them):

    embed                    [vocab, dim]
    layers.N.attention_norm  [dim]
    layers.N.wq              [q_rows, dim]    rows in adjacent-pair RoPE order
    layers.N.wk              [kv_rows, dim]   rows in adjacent-pair RoPE order
    layers.N.wv              [kv_rows, dim]
    layers.N.wo              [dim, q_rows]
    layers.N.ffn_norm        [dim]
    layers.N.w1              [hidden, dim]    gate
    layers.N.w2              [dim, hidden]    down
    layers.N.w3              [hidden, dim]    up
    norm                     [dim]
    output                   [vocab, dim]     absent where the embedding is tied
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from llama2gpu.config import Config
from llama2gpu.quant import Dense, Weight
from llama2gpu.vocabulary import Embedded

LAYER_MATRICES = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")
LAYER_NORMS = ("attention_norm", "ffn_norm")


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as it is stored: `shape`, the stored `dtype` by name, and its `nbytes` on disk."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


def tensor_shapes(config: Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Canonical names and shapes of all tensors of a model, in the order above; lazily."""
    c = config
    layer: dict[str, tuple[int, ...]] = {
        "attention_norm": (c.dim,),
        "wq": (c.q_rows, c.dim),
        "wk": (c.kv_rows, c.dim),
        "wv": (c.kv_rows, c.dim),
        "wo": (c.dim, c.q_rows),
        "ffn_norm": (c.dim,),
        "w1": (c.hidden, c.dim),
        "w2": (c.dim, c.hidden),
        "w3": (c.hidden, c.dim),
    }
    yield "embed", (c.vocab, c.dim)
    for n in range(c.layers):
        for name, shape in layer.items():
            yield f"layers.{n}.{name}", shape
    yield "norm", (c.dim,)
    if not c.tied:
        yield "output", (c.vocab, c.dim)


class Checkpoint(ABC):
    """An open checkpoint. Nothing but headers is read until `read` is called.

    format: what the file is, for people ("llama2.c v0", "Meta", "Hugging Face", …).
    path: the file or folder. parts: the files of a model of several, none where `path` is all.
    config: sizes and constants, already checked against what the file holds.
    dtype: the stored floating type of the matrices (float32, float16 or bfloat16); for a
        quantized format, the type it is dequantized to.
    quantization: how the matrices are quantized, for people; None where they are not.
    bos_id: token that starts a text, where the format tells.
    stop_ids: tokens that end a text, where the format tells; empty where the tokenizer decides.
    default_prompt: what a run without a prompt starts from.
    tokenizer_files: tokenizers that lie with the checkpoint, best first.
    chat_template: how a conversation becomes a text (Jinja), where the format tells; never run.
    """

    format: str
    path: Path
    parts: tuple[Path, ...] = ()
    config: Config
    dtype: torch.dtype
    quantization: str | None = None
    bos_id: int | None = None
    stop_ids: tuple[int, ...] = ()
    default_prompt: str = "Once upon a time"
    tokenizer_files: tuple[Path, ...] = ()
    chat_template: str | None = None

    @abstractmethod
    def tensors(self) -> Iterator[TensorInfo]:
        """The stored tensors, by canonical name, without reading their data."""

    @abstractmethod
    def read(self, name: str) -> torch.Tensor:
        """One tensor by canonical name, in the canonical row order and its stored type.

        Memory-mapped where the stored order allows; treat it as read-only.
        Raises `CheckpointError` where the file can't give it.
        """

    def read_into(self, name: str, out: torch.Tensor) -> None:
        """Writes what `read` gives to `out`, of the same shape, in the type that `out` has.

        Raises what `read` raises.
        """
        out.copy_(self.read(name))

    def weight(self, name: str) -> Weight:
        """One matrix by canonical name, in the canonical row order and as it is stored.

        Quantized where the format keeps it so and `Int8` or `Int4` can hold it, else dense.
        Raises `CheckpointError` where the file can't give it.
        """
        return Dense(self.read(name))

    def kind(self, name: str) -> str:
        """What `weight` gives of a matrix: "dense", or else "int8" or "int4".

        The latter also of what proves to be too irregular for them when it is read.
        """
        return "dense"

    def embedded_tokenizer(self) -> Embedded | None:
        """The tokenizer within the checkpoint, which comes before `tokenizer_files`; None if none.

        Raises `TokenizerError` where it is damaged or of a kind that is not supported.
        """
        return None

"""The canonical weights of a model, as a value."""

from dataclasses import dataclass
from typing import Any

import torch

#: Types of dense weights and activations, by the names that people use.
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
#: The matrices of a layer, in the order in which a token meets them, and the op that reads each.
LAYER_OPS = {"w_qkv": "qkv", "w_o": "project_add", "w_13": "gate_up", "w_2": "project_add"}


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer: matrices as a backend prepared them, norms float32 [dim].

    w_qkv: rows of q, k, v, those of q and k in adjacent-pair RoPE order.
    w_13: rows interleaved gate 0, up 0, gate 1, …
    """

    attention_norm: torch.Tensor
    w_qkv: Any
    w_o: Any
    ffn_norm: torch.Tensor
    w_13: Any
    w_2: Any


@dataclass(frozen=True)
class Weights:
    """All weights of a model.

    nbytes: what reading each matrix once takes, that is what one decoded token reads; the
        embedding, of which a token reads one row, counts only where it is the head too.
    """

    embed: Any
    layers: tuple[LayerWeights, ...]
    norm: torch.Tensor
    output: Any
    nbytes: int


def dtype_name(dtype: torch.dtype) -> str:
    """fp32, fp16 or bf16."""
    return next(name for name, kind in DTYPES.items() if kind == dtype)

"""A trained model as the files of a Hugging Face folder."""

from collections.abc import Mapping

import torch
from safetensors.torch import save

from llama2gpu.checkpoints.huggingface import NAMES, half_split_rows
from llama2gpu.checkpoints.huggingface_fields import (
    config_fields,
    json_bytes,
    token_ids,
    tokenizer_fields,
)
from llama2gpu.config import Config
from llama2gpu.quant import Dense
from llama2gpu.tokenizer import Tokenizer


def export_files(
    config: Config, weights: Mapping[str, torch.Tensor], tokenizer: Tokenizer, dtype: torch.dtype
) -> dict[str, bytes]:
    """Names and contents of the files, but for the tokenizer's own.

    weights: canonical tensors; they are stored in `dtype`, q and k rows in half-split order.
    """
    tensors = {}
    for name, tensor in weights.items():
        stored = half_split_rows(name, Dense(tensor.detach().cpu()), config.head_dim)
        tensors[NAMES(name)] = stored.dequantize(dtype).contiguous()
    ids = token_ids(tokenizer.bos_id, tokenizer.eos_ids)
    return {
        "config.json": json_bytes(config_fields(config, dtype) | ids),
        "generation_config.json": json_bytes(ids),
        "tokenizer_config.json": json_bytes(tokenizer_fields(config, tokenizer)),
        "model.safetensors": save(tensors, metadata={"format": "pt"}),
    }

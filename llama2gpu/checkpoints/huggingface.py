"""Hugging Face folders: `config.json` beside safetensors or `pytorch_model*.bin`, in shards or not.

Their q and k rows are in half-split RoPE order, and are permuted here, once, as they are read.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from llama2gpu.checkpoints.fields import read_json
from llama2gpu.checkpoints.files import present
from llama2gpu.checkpoints.huggingface_config import read_config
from llama2gpu.checkpoints.pickles import open_pickle
from llama2gpu.checkpoints.safetensors_file import open_safetensors
from llama2gpu.checkpoints.stored import NameTable, Stored, StoredCheckpoint, select
from llama2gpu.errors import CheckpointError

NAMES = NameTable(
    top={
        "embed": "model.embed_tokens.weight",
        "norm": "model.norm.weight",
        "output": "lm_head.weight",
    },
    layer="model.layers.{n}.{kind}.weight",
    kinds={
        "attention_norm": "input_layernorm",
        "wq": "self_attn.q_proj",
        "wk": "self_attn.k_proj",
        "wv": "self_attn.v_proj",
        "wo": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "w1": "mlp.gate_proj",
        "w2": "mlp.down_proj",
        "w3": "mlp.up_proj",
    },
)

#: Weights in the order of preference; an index names its shards.
_WEIGHTS: dict[str, Callable[[Path], dict[str, Stored]]] = {
    "model.safetensors": open_safetensors,
    "model.safetensors.index.json": open_safetensors,
    "pytorch_model.bin": open_pickle,
    "pytorch_model.bin.index.json": open_pickle,
}


def open_huggingface(folder: Path) -> StoredCheckpoint:
    """Opens a folder; every tensor's shape and type is checked, from headers alone.

    Raises `CheckpointError` for what is damaged or missing, `UnsupportedModelError` for a model
    that is not a plain Llama or Mistral.
    """
    model = read_config(folder)
    config = model.config
    stored = select(folder, config, _open_weights(folder), NAMES)
    for name, tensor in stored.items():
        if name.endswith((".wq", ".wk")):
            load = partial(_adjacent_pairs, tensor.load, config.head_dim)
            stored[name] = replace(tensor, load=load)
    checkpoint = StoredCheckpoint("Hugging Face", folder, config, stored)
    checkpoint.bos_id, checkpoint.stop_ids = model.bos_id, model.stop_ids
    checkpoint.tokenizer_files = present(folder, "tokenizer.model", "tokenizer.json")
    return checkpoint


def _open_weights(folder: Path) -> dict[str, Stored]:
    found = present(folder, *_WEIGHTS)
    if not found:
        raise CheckpointError(
            f"{folder} has config.json but no weights: add model.safetensors, or its shards with "
            "model.safetensors.index.json"
        )
    open_one = _WEIGHTS[found[0].name]
    if found[0].suffix != ".json":
        return open_one(found[0])
    return _open_shards(found[0], open_one)


def _open_shards(index: Path, open_one: Callable[[Path], dict[str, Stored]]) -> dict[str, Stored]:
    weight_map = read_json(index).nested("weight_map")
    places = {name: weight_map.text(name, "") for name in weight_map.values}
    for file in set(places.values()):
        if Path(file).name != file or "\\" in file:
            raise CheckpointError(
                f"{index} names {file[:80]!r}, which is no file beside it: do not trust it"
            )
    files = {file: open_one(index.parent / file) for file in sorted(set(places.values()))}
    missing = next((name for name, file in places.items() if name not in files[file]), None)
    if missing is not None:
        raise CheckpointError(
            f"{index}: {places[missing]} lacks {missing[:80]}: download that shard again"
        )
    return {name: files[file][name] for name, file in places.items()}


def _adjacent_pairs(load: Callable[[], torch.Tensor], head_dim: int) -> torch.Tensor:
    """Rows i and i + head_dim/2 of each head become rows 2i and 2i + 1."""
    weight = load()
    halves = weight.view(-1, 2, head_dim // 2, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape)

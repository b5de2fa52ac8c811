"""Hugging Face folders: `config.json` beside safetensors or `pytorch_model*.bin`, in shards or not.

Their q and k rows are in half-split RoPE order, and are permuted here, once, as they are read.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from llama2gpu.checkpoints.fields import read_json
from llama2gpu.checkpoints.files import present
from llama2gpu.checkpoints.gptq import join_parts
from llama2gpu.checkpoints.huggingface_config import read_config
from llama2gpu.checkpoints.pickles import open_pickle
from llama2gpu.checkpoints.safetensors_file import open_safetensors
from llama2gpu.checkpoints.stored import NameTable, Stored, StoredCheckpoint, select
from llama2gpu.errors import CheckpointError
from llama2gpu.quant import Weight

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

#: Tokenizers that a folder may hold, best first; the last is llama2.c's.
TOKENIZERS = ("tokenizer.model", "tokenizer.json", "tokenizer.bin")

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
    config, found = model.config, _open_weights(folder)
    if model.layout is not None:
        found = join_parts(folder, config, model.layout, found, NAMES)
    stored = {
        name: _adjacent(tensor, config.head_dim) if name.endswith((".wq", ".wk")) else tensor
        for name, tensor in select(folder, config, found, NAMES).items()
    }
    checkpoint = StoredCheckpoint("Hugging Face", folder, config, stored)
    checkpoint.quantization = None if model.layout is None else str(model.layout)
    checkpoint.bos_id, checkpoint.stop_ids = model.bos_id, model.stop_ids
    checkpoint.tokenizer_files = present(folder, *TOKENIZERS)
    return checkpoint


def half_split_rows(name: str, weight: Weight, head_dim: int) -> Weight:
    """A canonical weight in Hugging Face's order of rows: q and k of each head by halves."""
    if not name.endswith((".wq", ".wk")):
        return weight
    pairs = torch.arange(weight.shape[0]).view(-1, head_dim // 2, 2)
    return weight.rows(pairs.transpose(1, 2).flatten())


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


def _adjacent(tensor: Stored, head_dim: int) -> Stored:
    """Rows i and i + head_dim/2 of each head become rows 2i and 2i + 1."""
    load, weight = tensor.load, tensor.weight

    def order() -> torch.Tensor:
        halves = torch.arange(tensor.shape[0]).view(-1, 2, head_dim // 2)
        return halves.transpose(1, 2).flatten()

    return replace(
        tensor,
        load=lambda: load()[order()],
        weight=None if weight is None else lambda: weight().rows(order()),
    )

"""Meta's own folders: `params.json` and the shards `consolidated.NN.pth`, joined as they are read.

Layout: https://github.com/meta-llama/llama, whose model-parallel layers cut the matrices by rows
or by columns.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from llama2gpu.checkpoints.fields import Fields, config_from, read_json
from llama2gpu.checkpoints.files import list_folder, present
from llama2gpu.checkpoints.pickles import open_pickle
from llama2gpu.checkpoints.stored import (
    NameTable,
    Stored,
    StoredCheckpoint,
    header,
    rows_of,
    select,
)
from llama2gpu.config import Config, RopeScaling
from llama2gpu.errors import CheckpointError, UnsupportedModelError

NAMES = NameTable(
    top={"embed": "tok_embeddings.weight", "norm": "norm.weight", "output": "output.weight"},
    layer="layers.{n}.{kind}.weight",
    kinds={
        "attention_norm": "attention_norm",
        "wq": "attention.wq",
        "wk": "attention.wk",
        "wv": "attention.wv",
        "wo": "attention.wo",
        "ffn_norm": "ffn_norm",
        "w1": "feed_forward.w1",
        "w2": "feed_forward.w2",
        "w3": "feed_forward.w3",
    },
)

_BY_ROWS = ("wq.weight", "wk.weight", "wv.weight", "w1.weight", "w3.weight", "output.weight")
_BY_COLUMNS = ("wo.weight", "w2.weight")
_UNSUPPORTED = ("moe", "quantization_args", "lora_args", "vision_chunk_size", "sliding_window")


def open_meta(folder: Path) -> StoredCheckpoint:
    """Opens a folder of one shard or more; sizes that params.json omits are read off the tensors.

    Raises `CheckpointError` for what is damaged or missing.
    """
    params = read_json(folder / "params.json")
    for key in _UNSUPPORTED:
        if key in params:
            raise UnsupportedModelError(
                f"{params.where}: {key} is not supported: give a plain Llama"
            )
    dim = params.integer("dim")
    shards = [open_pickle(path) for path in _shard_paths(folder)]
    whole = {name: _join(folder, name, shards, dim) for name in shards[0]}
    config = _config(params, whole)
    checkpoint = StoredCheckpoint("Meta", folder, config, select(folder, config, whole, NAMES))
    names = ("tokenizer.model", "tokenizer.json")
    checkpoint.tokenizer_files = present(folder, *names) + present(folder.parent, *names)
    return checkpoint


def _shard_paths(folder: Path) -> list[Path]:
    names = list_folder(folder)
    count = sum(name.startswith("consolidated.") and name.endswith(".pth") for name in names)
    wanted = [f"consolidated.{n:02d}.pth" for n in range(max(count, 1))]
    for name in wanted:
        if name not in names:
            raise CheckpointError(f"{folder} lacks {name}: download the missing shard")
    return [folder / name for name in wanted]


def _join(folder: Path, name: str, shards: Sequence[Mapping[str, Stored]], dim: int) -> Stored:
    """One tensor over all shards; nothing is read until it is loaded."""
    for n, shard in enumerate(shards):
        if name not in shard:
            raise CheckpointError(f"{folder}: shard {n} lacks {name}: shards of different models")
    parts = [shard[name] for shard in shards]
    axis = _axis(parts[0], dim)
    if len(parts) == 1 or axis is None:
        return parts[0]
    first = parts[0]
    if any((part.shape, part.dtype) != (first.shape, first.dtype) for part in parts):
        raise CheckpointError(
            f"{folder}: {name} differs between shards: shards of different models"
        )
    shape = list(first.shape)
    shape[axis] *= len(parts)
    return header(name, tuple(shape), first.dtype, partial(_concatenate, parts, axis))


def _axis(part: Stored, dim: int) -> int | None:
    """Along which the shards of a matrix lie; None where each holds the whole."""
    if len(part.shape) != 2:
        return None
    if part.name == NAMES("embed"):
        return 0 if part.shape[1] == dim else 1
    if part.name.endswith(_BY_COLUMNS):
        return 1
    return 0 if part.name.endswith(_BY_ROWS) else None


def _concatenate(parts: Sequence[Stored], axis: int) -> torch.Tensor:
    return torch.cat([part.load() for part in parts], dim=axis)


def _config(params: Fields, whole: Mapping[str, Stored]) -> Config:
    dim, heads = params.integer("dim"), params.integer("n_heads")
    vocab = params.integer("vocab_size", -1)
    scaled = params.flag("use_scaled_rope", False)
    return config_from(
        params.where,
        dim=dim,
        hidden=rows_of(params.where, whole, NAMES("layers.0.w1")),
        layers=params.integer("n_layers"),
        heads=heads,
        kv_heads=params.integer("n_kv_heads", heads),
        head_dim=params.integer("head_dim", dim // max(heads, 1)),
        vocab=rows_of(params.where, whole, NAMES("embed")) if vocab == -1 else vocab,
        context=params.integer("max_seq_len", _context(params, scaled)),
        norm_eps=params.number("norm_eps", 1e-5),
        rope_theta=params.number("rope_theta", 10000.0),
        rope_scaling=_scaling(dim) if scaled else None,
        tied=NAMES("output") not in whole,
    )


def _scaling(dim: int) -> RopeScaling:
    """Llama 3.2's small models (dim 2048 and 3072) stretch by 32, 3.1 and 3.3 by 8."""
    return RopeScaling("llama3", 32.0 if dim < 4096 else 8.0)


def _context(params: Fields, scaled: bool) -> int:
    """The trained context, which params.json does not say.

    Llama 3.1 and later scale RoPE; Code Llama has theta 1e6, Llama 3 5e5; Llama 1 has norm_eps
    1e-6, but its largest shares 1e-5 with Llama 2, whose models of that width group their queries.
    """
    theta = params.number("rope_theta", 10000.0)
    if scaled:
        return 131072
    if theta >= 5e5:
        return 16384 if theta >= 1e6 else 8192
    ungrouped = params.get("n_kv_heads") in (None, params.get("n_heads"))
    largest = params.integer("dim") == 8192 and ungrouped
    return 2048 if largest or params.number("norm_eps", 1e-5) < 5e-6 else 4096

"""Writers of every checkpoint format, from canonical tensors; names and orders are spelled out."""

import json
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from llama2gpu.checkpoints import RandomCheckpoint, tensor_shapes
from llama2gpu.config import Config, RopeScaling

Tensors = dict[str, torch.Tensor]

CONFIG = Config(
    dim=32, hidden=44, layers=2, heads=4, kv_heads=2, head_dim=8, vocab=96, context=64, tied=False
)

HF_KINDS = {
    "attention_norm": "input_layernorm",
    "wq": "self_attn.q_proj",
    "wk": "self_attn.k_proj",
    "wv": "self_attn.v_proj",
    "wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "w1": "mlp.gate_proj",
    "w2": "mlp.down_proj",
    "w3": "mlp.up_proj",
}
META_KINDS = {
    "attention_norm": "attention_norm",
    "wq": "attention.wq",
    "wk": "attention.wk",
    "wv": "attention.wv",
    "wo": "attention.wo",
    "ffn_norm": "ffn_norm",
    "w1": "feed_forward.w1",
    "w2": "feed_forward.w2",
    "w3": "feed_forward.w3",
}
HF_TOP = {
    "embed": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "output": "lm_head.weight",
}
META_TOP = {"embed": "tok_embeddings.weight", "norm": "norm.weight", "output": "output.weight"}


def random_tensors(config: Config, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensors:
    """All canonical tensors of a random model."""
    checkpoint = RandomCheckpoint(config, dtype, seed)
    return {name: checkpoint.read(name) for name, _ in tensor_shapes(config)}


def write_llama2c(
    path: Path, config: Config, tensors: Tensors, *, version: int = 0, group: int = 4
) -> Path:
    """Writes one llama2.c file: version 0, 1, or 2 (int8, in groups of `group`)."""
    c, tied = config, config.tied
    vocab = -c.vocab if version == 0 and not tied else c.vocab
    sizes = struct.pack("<7i", c.dim, c.hidden, c.layers, c.heads, c.kv_heads, vocab, c.context)
    matrices = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")
    with path.open("wb") as file:
        if version == 0:
            file.write(sizes)
            order = ["embed", "attention_norm", "wq", "wk", "wv", "wo", "ffn_norm"]
            order += ["w1", "w2", "w3", "norm", "tables"]
        else:
            head = struct.pack("<Ii", 0x616B3432, version) + sizes + struct.pack("<B", tied)
            head += struct.pack("<i", group) if version == 2 else b""
            file.write(head.ljust(256, b"\0"))
            order = ["attention_norm", "ffn_norm", "norm", "embed", *matrices]
        for kind in [*order, *([] if tied else ["output"])]:
            for tensor in _of_kind(config, tensors, kind):
                quantized = version == 2 and tensor.dim() == 2
                file.write(_q8(tensor, group) if quantized else _f32(tensor))
    return path


def _of_kind(config: Config, tensors: Tensors, kind: str) -> list[torch.Tensor]:
    if kind == "tables":
        return [torch.full((config.context, config.head_dim), 7.0).flatten()]
    if kind in tensors:
        return [tensors[kind]]
    return [tensors[f"layers.{n}.{kind}"] for n in range(config.layers)]


def _f32(tensor: torch.Tensor) -> bytes:
    return tensor.float().contiguous().numpy().tobytes()


def _q8(tensor: torch.Tensor, group: int) -> bytes:
    groups = tensor.float().reshape(-1, group)
    scales = groups.abs().amax(1) / 127
    values = (groups / scales[:, None]).round().to(torch.int8)
    return values.numpy().tobytes() + _f32(scales)


def write_meta(
    folder: Path,
    config: Config,
    tensors: Tensors,
    *,
    shards: int = 1,
    embed_by_rows: bool = False,
    params: dict[str, Any] | None = None,
) -> Path:
    """Writes params.json and the shards; `params` is merged over what the configuration says."""
    folder.mkdir(parents=True, exist_ok=True)
    c = config
    written: dict[str, Any] = {
        "dim": c.dim,
        "n_layers": c.layers,
        "n_heads": c.heads,
        "n_kv_heads": c.kv_heads,
        "vocab_size": -1,
        "multiple_of": 4,
        "norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,
    }
    (folder / "params.json").write_text(json.dumps(written | (params or {})))
    rows = {"wq", "wk", "wv", "w1", "w3", "output"} | ({"embed"} if embed_by_rows else set())
    columns = {"wo", "w2"} | (set() if embed_by_rows else {"embed"})
    for n in range(shards):
        part = {"rope.freqs": torch.ones(c.head_dim // 2)}
        for name, tensor in tensors.items():
            kind = name.rpartition(".")[2]
            axis = 0 if kind in rows else 1 if kind in columns else None
            cut = tensor if axis is None else tensor.chunk(shards, axis)[n]
            part[_rename(name, META_TOP, "layers.{}.{}.weight", META_KINDS)] = cut.clone()
        torch.save(part, folder / f"consolidated.{n:02d}.pth")
    return folder


def write_huggingface(
    folder: Path,
    config: Config,
    tensors: Tensors,
    *,
    shards: int = 1,
    safe: bool = True,
    fields: dict[str, Any] | None = None,
) -> Path:
    """Writes config.json and weights, in safetensors or in `.bin` files.

    `fields` is merged over what the configuration says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(_hf_fields(config) | (fields or {})))
    named = {
        _rename(name, HF_TOP, "model.layers.{}.{}.weight", HF_KINDS): (
            half_split(tensor, config.head_dim) if name.endswith((".wq", ".wk")) else tensor.clone()
        )
        for name, tensor in tensors.items()
    }
    stem, suffix = ("model", "safetensors") if safe else ("pytorch_model", "bin")
    if shards == 1:
        _save(named, folder / f"{stem}.{suffix}", safe)
        return folder
    places = {
        name: f"{stem}-{1 + n % shards:05d}-of-{shards:05d}.{suffix}"
        for n, name in enumerate(named)
    }
    for file in set(places.values()):
        _save({name: named[name] for name in named if places[name] == file}, folder / file, safe)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return folder


def half_split(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows 2i and 2i + 1 of each head become rows i and i + head_dim/2, one by one."""
    source = []
    for head in range(weight.shape[0] // head_dim):
        source += [head * head_dim + 2 * i for i in range(head_dim // 2)]
        source += [head * head_dim + 2 * i + 1 for i in range(head_dim // 2)]
    return weight[source].contiguous()


def _save(tensors: Tensors, path: Path, safe: bool) -> None:
    if safe:
        save_file(tensors, path, metadata={"format": "pt"})
    else:
        torch.save(tensors, path)


def _rename(name: str, top: dict[str, str], layer: str, kinds: dict[str, str]) -> str:
    if name in top:
        return top[name]
    _, n, kind = name.split(".")
    return layer.format(n, kinds[kind])


def _hf_fields(c: Config) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": c.dim,
        "intermediate_size": c.hidden,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "vocab_size": c.vocab,
        "max_position_embeddings": c.context,
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,
        "rope_scaling": None if c.rope_scaling is None else _scaling(c.rope_scaling),
        "tie_word_embeddings": c.tied,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def _scaling(scaling: RopeScaling) -> dict[str, Any]:
    fields = {"rope_type": scaling.type, "factor": scaling.factor}
    if scaling.type == "linear":
        return fields
    fields["original_max_position_embeddings"] = scaling.original_context
    if scaling.type == "llama3":
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        return fields | {"low_freq_factor": low, "high_freq_factor": high}
    names = ("attention_factor", "mscale", "mscale_all_dim")
    given = {name: getattr(scaling, name) for name in names if getattr(scaling, name) is not None}
    betas = {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
    return fields | given | betas | {"truncate": scaling.truncate}

"""Hugging Face's `config.json` and `generation_config.json` of a Llama or a Mistral."""

import reprlib
from dataclasses import dataclass
from pathlib import Path

from llama2gpu.checkpoints.fields import Fields, config_from, read_json
from llama2gpu.checkpoints.files import status
from llama2gpu.checkpoints.quantization_config import Layout, read_layout
from llama2gpu.checkpoints.rope_config import read_rope
from llama2gpu.config import LIMITS, Config
from llama2gpu.errors import CheckpointError, UnsupportedModelError

_ARCHITECTURES = ("LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM")


@dataclass(frozen=True)
class ModelConfig:
    """What the two files say: sizes, quantization, the tokens that begin and end a text."""

    config: Config
    bos_id: int | None
    stop_ids: tuple[int, ...]
    layout: Layout | None


def read_config(folder: Path) -> ModelConfig:
    """Reads both files of a folder.

    Raises `UnsupportedModelError` for another architecture, biases, another activation, a sliding
    window shorter than the context, and quantized weights that are in neither GPTQ's nor AWQ's
    layout.
    """
    fields = read_json(folder / "config.json")
    _check_supported(fields)
    layout = None
    if "quantization_config" in fields:
        layout = read_layout(fields.nested("quantization_config"))
    return ModelConfig(_config(fields), _bos_id(fields), _stop_ids(folder, fields), layout)


def _check_supported(fields: Fields) -> None:
    kind = fields.text("model_type", "none")
    named = fields.get("architectures")
    if kind not in ("llama", "mistral"):
        _refuse(fields, f"model_type {kind[:40]!r}", "llama and mistral are supported")
    if named and not (isinstance(named, list) and any(name in _ARCHITECTURES for name in named)):
        _refuse(fields, f"architecture {reprlib.repr(named)}", "LlamaForCausalLM is supported")
    for key in ("attention_bias", "mlp_bias"):
        if fields.flag(key, False):
            _refuse(fields, key, "give a model without biases")
    if (activation := fields.text("hidden_act", "silu")) != "silu":
        _refuse(fields, f"hidden_act {activation[:40]!r}", "silu is supported")


def _refuse(fields: Fields, what: str, remedy: str) -> None:
    raise UnsupportedModelError(f"{fields.where}: {what} is not supported: {remedy}")


def _config(fields: Fields) -> Config:
    mistral = fields.text("model_type", "") == "mistral"
    context = fields.integer("max_position_embeddings", 131072 if mistral else 2048)
    if mistral and (window := fields.get("sliding_window")) is not None:
        window = fields.integer("sliding_window")
        if window < context:
            _refuse(fields, f"a sliding window of {window} in {context}", "give a later version")
    dim, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    theta, scaling = read_rope(fields, context)
    return config_from(
        fields.where,
        dim=dim,
        hidden=fields.integer("intermediate_size"),
        layers=fields.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=fields.integer("num_key_value_heads", 8 if mistral else heads),
        head_dim=fields.integer("head_dim", dim // max(heads, 1)),
        vocab=fields.integer("vocab_size"),
        context=context,
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tied=fields.flag("tie_word_embeddings", False),
    )


def _bos_id(fields: Fields) -> int | None:
    found = _ids(fields, "bos_token_id")
    return found[0] if found else None


def _stop_ids(folder: Path, fields: Fields) -> tuple[int, ...]:
    """`generation_config.json` first: chat models list their ends of turn there alone."""
    path = folder / "generation_config.json"
    own = _ids(read_json(path), "eos_token_id") if status(path) is not None else ()
    return own or _ids(fields, "eos_token_id")


def _ids(fields: Fields, key: str) -> tuple[int, ...]:
    value = fields.get(key)
    values = value if isinstance(value, list) else [] if value is None else [value]
    for one in values:
        if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one < LIMITS["vocab"]:
            raise CheckpointError(f"{fields.where}: {key} must be a token id, or a list of them")
    return tuple(dict.fromkeys(values))

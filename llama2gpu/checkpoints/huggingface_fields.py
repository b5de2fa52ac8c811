"""The JSON files of a Hugging Face folder, as dictionaries."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from llama2gpu.config import Config, RopeScaling
from llama2gpu.tokenizer import Tokenizer


def config_fields(c: Config, dtype: torch.dtype) -> dict[str, Any]:
    """`config.json` of a model whose dense tensors are stored in `dtype`, but for token ids."""
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
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def _scaling(s: RopeScaling) -> dict[str, Any]:
    fields: dict[str, Any] = {"rope_type": s.type, "factor": s.factor}
    if s.type == "linear":
        return fields
    fields["original_max_position_embeddings"] = s.original_context
    if s.type == "llama3":
        low, high = s.low_freq_factor, s.high_freq_factor
        return fields | {"low_freq_factor": low, "high_freq_factor": high}
    names = ("attention_factor", "mscale", "mscale_all_dim")
    given = {name: getattr(s, name) for name in names if getattr(s, name) is not None}
    return (
        fields
        | given
        | {"beta_fast": s.beta_fast, "beta_slow": s.beta_slow, "truncate": s.truncate}
    )


def token_ids(bos: int | None, eos: Sequence[int]) -> dict[str, Any]:
    """The tokens that begin and end a text, of `config.json` and `generation_config.json`."""
    ends = {"eos_token_id": eos[0] if len(eos) == 1 else list(eos)} if eos else {}
    return {"bos_token_id": bos, **ends}


def tokenizer_fields(config: Config, tokenizer: Tokenizer) -> dict[str, Any]:
    """`tokenizer_config.json` of a tokenizer.model or, for byte-level BPE, a tokenizer.json."""

    def name(id: int | None) -> str | None:
        return None if id is None else tokenizer.token(id).text.decode(errors="replace")

    of_llama = tokenizer.format in ("SentencePiece", "llama2.c")
    unknown = of_llama or any(tokenizer.token(n).text == b"<unk>" for n in range(tokenizer.vocab))
    return {
        "tokenizer_class": "LlamaTokenizer" if of_llama else "PreTrainedTokenizerFast",
        "bos_token": name(tokenizer.bos_id),
        "eos_token": name(next(iter(tokenizer.eos_ids), None)),
        **({"unk_token": "<unk>"} if unknown else {}),
        "add_bos_token": tokenizer.adds_bos,
        "add_eos_token": False,
        **({"legacy": False} if of_llama else {}),
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.context,
    }


def json_bytes(values: Mapping[str, Any]) -> bytes:
    """A JSON file."""
    return (json.dumps(values, indent=2) + "\n").encode()

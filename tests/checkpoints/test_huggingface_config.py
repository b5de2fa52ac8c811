"""config.json in its old and new spellings, and everything that is refused in it."""

import json
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llama2gpu.checkpoints import Checkpoint, open_checkpoint
from llama2gpu.checkpoints.rope_config import parse_scaling, stretched
from llama2gpu.config import RopeScaling
from llama2gpu.errors import CheckpointError, RequestError, UnsupportedModelError
from tests.checkpoints.writers import CONFIG, random_tensors, write_huggingface

TENSORS = random_tensors(CONFIG)


def opened(folder: Path, **fields: Any) -> Checkpoint:
    return open_checkpoint(write_huggingface(folder, CONFIG, TENSORS, fields=fields))


LLAMA3: dict[str, Any] = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN: dict[str, Any] = {
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "attention_factor": 1.5,
    "beta_fast": 30,
    "beta_slow": 2,
    "mscale": 0.7,
    "mscale_all_dim": 0.8,
    "truncate": False,
}
SCALINGS: dict[str, tuple[dict[str, Any], RopeScaling | None]] = {
    "default": ({}, None),
    "linear": ({"factor": 2}, RopeScaling("linear", 2.0)),
    "llama3": (LLAMA3, RopeScaling("llama3", 8.0, 1.0, 4.0, 32)),
    "yarn": (
        YARN,
        RopeScaling(
            "yarn",
            4.0,
            original_context=16,
            attention_factor=1.5,
            beta_fast=30.0,
            beta_slow=2.0,
            mscale=0.7,
            mscale_all_dim=0.8,
            truncate=False,
        ),
    ),
}


@pytest.mark.parametrize("spelling", ["type", "rope_type", "rope_parameters"])
@pytest.mark.parametrize("kind", SCALINGS)
def test_rope_spellings(tmp_path: Path, kind: str, spelling: str) -> None:
    given, wanted = SCALINGS[kind]
    if spelling == "rope_parameters":
        rope = {"rope_theta": 5e5, "rope_type": kind, **given}
        config = opened(tmp_path, rope_parameters=rope, rope_theta=None).config
    else:
        scaling = {spelling: kind, **given}
        config = opened(tmp_path, rope_scaling=scaling, rope_theta=5e5).config
    assert config == replace(CONFIG, rope_theta=5e5, rope_scaling=wanted)


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
def test_a_scaling_that_is_asked_for_is_that_of_a_file(kind: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"rope_type": kind, "factor": 2.5}
    if kind == "llama3":
        given |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    given |= {} if kind == "linear" else {"original_max_position_embeddings": CONFIG.context}
    longer = round(CONFIG.context * 2.5)
    scaled = opened(tmp_path / "a", rope_scaling=given, max_position_embeddings=longer).config
    plain = opened(tmp_path / "b").config
    assert stretched(plain, f"{kind}:2.5") == scaled
    again = stretched(scaled, "yarn:3")
    base = longer if kind == "linear" else CONFIG.context
    assert again.rope_scaling == RopeScaling("yarn", 3.0, original_context=base)
    assert again.context == 3 * base


@pytest.mark.parametrize("text", ["", "4", "yarn", "YARN:4", "dynamic:4", "yarn:-1", "yarn:inf"])
def test_scalings_that_are_none(text: str) -> None:
    with pytest.raises(RequestError, match="give TYPE:FACTOR, yarn:4 say, of a type of linear"):
        parse_scaling(text)


def test_a_scaling_goes_no_further_than_a_context_may() -> None:
    most = (1 << 30) // CONFIG.context
    assert stretched(CONFIG, f"linear:{most}").context <= 1 << 30
    with pytest.raises(RequestError, match=f"give a factor up to {most}"):
        stretched(CONFIG, f"linear:{most + 1}")


def test_yarn_defaults(tmp_path: Path) -> None:
    scaling = {"type": "yarn", "original_max_position_embeddings": 16}
    config = opened(tmp_path, rope_scaling=scaling).config
    assert config.rope_scaling == RopeScaling("yarn", 4.0, original_context=16)


def test_defaults(tmp_path: Path) -> None:
    fields = dict.fromkeys(["rms_norm_eps", "rope_theta", "tie_word_embeddings", "head_dim"])
    config = opened(tmp_path, **fields).config
    assert config == replace(CONFIG, norm_eps=1e-6)


@pytest.mark.parametrize("window", [None, 64, 4096])
def test_mistral(tmp_path: Path, window: int | None) -> None:
    names = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    assert opened(tmp_path, **names, sliding_window=window).config == CONFIG


def test_eos_of_generation_config_first(tmp_path: Path) -> None:
    assert opened(tmp_path, eos_token_id=[7, 8, 7]).stop_ids == (7, 8)
    generation = tmp_path / "generation_config.json"
    generation.write_text('{"eos_token_id": [90, 91]}')
    assert open_checkpoint(tmp_path).stop_ids == (90, 91)
    generation.write_text("{}")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.stop_ids == (7, 8)
    assert checkpoint.bos_id == 1


def test_both_tokenizers(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer.model"):
        (tmp_path / name).touch()
    names = [file.name for file in opened(tmp_path).tokenizer_files]
    assert names == ["tokenizer.model", "tokenizer.json"]


UNSUPPORTED: dict[str, dict[str, Any]] = {
    "model_type 'gpt2'": {"model_type": "gpt2"},
    "architecture": {"architectures": ["LlamaForSequenceClassification"]},
    "attention_bias": {"attention_bias": True},
    "mlp_bias": {"mlp_bias": True},
    "hidden_act 'gelu'": {"hidden_act": "gelu"},
    "quant_method 'hqq'": {"quantization_config": {"quant_method": "hqq", "bits": 4}},
    "AWQ's version 'gemv'": {"quantization_config": {"quant_method": "awq", "version": "gemv"}},
    "sliding window of 32": {"model_type": "mistral", "sliding_window": 32},
    "'dynamic'": {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "'longrope'": {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}},
    "part of each head": {"partial_rotary_factor": 0.5},
}


@pytest.mark.parametrize(("match", "fields"), UNSUPPORTED.items(), ids=UNSUPPORTED)
def test_unsupported(tmp_path: Path, match: str, fields: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError, match=match) as error:
        opened(tmp_path, **fields)
    assert "\n" not in str(error.value)


DAMAGED: list[dict[str, Any]] = [
    {"hidden_size": "32"},
    {"hidden_size": 32.0},
    {"hidden_size": True},
    {"hidden_size": None},
    {"hidden_size": -32},
    {"hidden_size": 10**300},
    {"num_hidden_layers": 1 << 31},
    {"num_hidden_layers": 1},
    {"num_attention_heads": 0},
    {"num_attention_heads": 3},
    {"num_key_value_heads": 0},
    {"head_dim": 7},
    {"vocab_size": [96]},
    {"vocab_size": 95},
    {"intermediate_size": 45},
    {"max_position_embeddings": 0},
    {"rms_norm_eps": 10**400},
    {"rms_norm_eps": "x" * 10**5},
    {"rms_norm_eps": 0},
    {"rope_theta": {}},
    {"rope_theta": 0.5},
    {"rope_theta": 1.0, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    {"tie_word_embeddings": "no"},
    {"architectures": "LlamaForCausalLM"},
    {"architectures": [{}]},
    {"model_type": None},
    {"eos_token_id": "2"},
    {"eos_token_id": [True]},
    {"eos_token_id": -1},
    {"rope_scaling": [1]},
    {"rope_scaling": {"type": "linear"}},
    {"rope_scaling": {"type": "linear", "factor": 0}},
    {"rope_scaling": {"type": ["linear"]}},
    {"rope_scaling": {"rope_type": "llama3", **LLAMA3, "low_freq_factor": 4.0}},
    {"rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": 0}},
    {"rope_parameters": {"full_attention": {"rope_type": "default"}, "rope_type": {}}},
]


@pytest.mark.parametrize("fields", DAMAGED, ids=lambda fields: str(fields)[:40])
def test_damaged_fields(tmp_path: Path, fields: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError) as error:
        opened(tmp_path, **fields)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


TEXTS = {
    "empty": b"",
    "list": b"[]",
    "cut": b'{"model_type": "lla',
    "latin-1": b'{"model_type": "\xe9"}',
    "NaN": b'{"rms_norm_eps": NaN}',
    "digits": b'{"hidden_size": ' + b"9" * 10**5 + b"}",
    "nested": b'{"a":' + b"[" * 10**6,
    "large": b"{" + b" " * (5 << 20) + b"}",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_damaged_json(tmp_path: Path, name: str, text: bytes) -> None:
    opened(tmp_path)
    (tmp_path / name).write_bytes(text)
    with pytest.raises(CheckpointError, match=name) as error:
        open_checkpoint(tmp_path)
    assert "\n" not in str(error.value)


def _edit(folder: Path, changes: dict[str, torch.Tensor | None]) -> Path:
    path = write_huggingface(folder, CONFIG, TENSORS) / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    for name, tensor in changes.items():
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, path)
    return folder


def test_rotary_tables_are_ignored(tmp_path: Path) -> None:
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    assert open_checkpoint(_edit(tmp_path, dict(extra))).config == CONFIG


def test_head_of_a_tied_model_is_ignored(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, tie_word_embeddings=True)
    assert checkpoint.config.tied
    with pytest.raises(CheckpointError, match="holds no tensor 'output'"):
        checkpoint.read("output")


BAD_TENSORS = {
    "lacks the tensor lm_head.weight": {"lm_head.weight": None},
    r"norm.weight is \[31\]": {"model.norm.weight": torch.ones(31)},
    "norm.weight is I64": {"model.norm.weight": torch.ones(32, dtype=torch.int64)},
    "q_proj.bias": {"model.layers.0.self_attn.q_proj.bias": torch.ones(32)},
}


@pytest.mark.parametrize(("match", "changes"), BAD_TENSORS.items(), ids=BAD_TENSORS)
def test_bad_tensors(tmp_path: Path, match: str, changes: dict[str, torch.Tensor | None]) -> None:
    with pytest.raises(CheckpointError, match=match):
        open_checkpoint(_edit(tmp_path, changes))


@pytest.mark.parametrize("place", ["../x.safetensors", "/etc/passwd", "", "..", "a\0b", "a\\b", 7])
def test_index_that_points_elsewhere(tmp_path: Path, place: object) -> None:
    write_huggingface(tmp_path / "hf", CONFIG, TENSORS, shards=2)
    write_huggingface(tmp_path, CONFIG, TENSORS)
    (tmp_path / "model.safetensors").replace(tmp_path / "x.safetensors")
    index = tmp_path / "hf" / "model.safetensors.index.json"
    fields = json.loads(index.read_text())
    fields["weight_map"]["model.norm.weight"] = place
    index.write_text(json.dumps(fields))
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(tmp_path / "hf")
    assert "\n" not in str(error.value)


def test_index_that_lies(tmp_path: Path) -> None:
    write_huggingface(tmp_path, CONFIG, TENSORS, shards=2)
    index = tmp_path / "model.safetensors.index.json"
    fields = json.loads(index.read_text())
    places = fields["weight_map"]
    places["model.embed_tokens.weight"] = "model-00002-of-00002.safetensors"
    index.write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match="download that shard again"):
        open_checkpoint(tmp_path)


def test_no_weights(tmp_path: Path) -> None:
    opened(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has config\.json but no weights"):
        open_checkpoint(tmp_path)


def test_state_dict_of_parameters(tmp_path: Path) -> None:
    """An OrderedDict of parameters with its `_metadata`, as `Module.state_dict` gives it."""
    path = write_huggingface(tmp_path, CONFIG, TENSORS, safe=False) / "pytorch_model.bin"
    saved = torch.load(path, weights_only=True)
    state = OrderedDict((name, torch.nn.Parameter(saved[name])) for name in saved)
    vars(state)["_metadata"] = OrderedDict({"": {"version": 1}})
    torch.save(state, path)
    checkpoint = open_checkpoint(tmp_path)
    for name, tensor in TENSORS.items():
        assert not checkpoint.read(name).requires_grad
        assert torch.equal(checkpoint.read(name), tensor)

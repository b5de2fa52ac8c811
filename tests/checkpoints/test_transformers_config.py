"""Folders as transformers itself saves them."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from llama2gpu.checkpoints import open_checkpoint
from llama2gpu.config import Config, RopeScaling

transformers = pytest.importorskip("transformers")

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 128,
}
ROPES: dict[str, tuple[dict[str, Any], RopeScaling | None]] = {
    "default": ({}, None),
    "linear": ({"factor": 2.0}, RopeScaling("linear", 2.0)),
    "llama3": (
        {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
        RopeScaling("llama3", 8.0, original_context=16),
    ),
    "yarn": (
        {"factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 16.0},
        RopeScaling("yarn", 4.0, original_context=32, beta_fast=16.0),
    ),
}


def saved(folder: Path, rope: dict[str, Any], shard: str = "5GB", **fields: Any) -> Any:
    if int(transformers.__version__.split(".")[0]) >= 5:
        spelled: dict[str, Any] = {"rope_parameters": {**rope, "rope_theta": 5e5}}
    else:
        spelled = {"rope_scaling": rope, "rope_theta": 5e5}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = transformers.LlamaConfig(**SIZES, **spelled, **fields)
        model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
        model.save_pretrained(folder, max_shard_size=shard)
    return model


@pytest.mark.parametrize("kind", ROPES)
def test_saved_by_transformers(tmp_path: Path, kind: str) -> None:
    given, scaling = ROPES[kind]
    tied = kind == "linear"
    model = saved(
        tmp_path,
        {"rope_type": kind, **given},
        eos_token_id=[5, 6],
        bos_token_id=4,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        shard="20KB" if kind == "yarn" else "5GB",
    )
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config == Config(
        dim=32,
        hidden=44,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=8,
        vocab=64,
        context=128,
        norm_eps=1e-5,
        rope_theta=5e5,
        rope_scaling=scaling,
        tied=tied,
    )
    assert checkpoint.dtype == torch.bfloat16
    assert (checkpoint.bos_id, checkpoint.stop_ids) == (4, (5, 6))
    state = model.state_dict()
    assert torch.equal(checkpoint.read("embed"), state["model.embed_tokens.weight"])
    assert torch.equal(checkpoint.read("layers.1.w1"), state["model.layers.1.mlp.gate_proj.weight"])
    if kind == "yarn":
        assert (tmp_path / "model.safetensors.index.json").exists()


def test_rotation_is_the_same(tmp_path: Path) -> None:
    """Adjacent pairs of our rows are transformers' halves: same scores at every distance."""
    model = saved(tmp_path, {"rope_type": "default"})
    checkpoint = open_checkpoint(tmp_path)
    x = torch.randn(6, 32, dtype=torch.float64)
    state = model.state_dict()
    theirs, ours = [], []
    frequencies = 5e5 ** -(torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    turn = torch.polar(torch.ones(6, 4).double(), torch.outer(torch.arange(6.0), frequencies))
    for part, name in (("q", "wq"), ("k", "wk")):
        weight = state[f"model.layers.0.self_attn.{part}_proj.weight"].double()[:8]
        half = (x @ weight.T).view(6, 2, 4)
        theirs.append(torch.complex(half[:, 0], half[:, 1]) * turn)
        pairs = (x @ checkpoint.read(f"layers.0.{name}").double()[:8].T).view(6, 4, 2)
        ours.append(torch.view_as_complex(pairs.contiguous()) * turn)
    scores = [(q @ k.conj().T).real for q, k in (theirs, ours)]
    assert torch.allclose(scores[0], scores[1], rtol=1e-12, atol=1e-12)

"""Logits against Hugging Face's Llama, through every checkpoint format."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llama2gpu.backends import choose_backend
from llama2gpu.batch import Span, build_batch
from llama2gpu.build import build_model
from llama2gpu.cache import KVCache
from llama2gpu.checkpoints import Checkpoint, open_checkpoint, tensor_shapes
from llama2gpu.ops.rope import rope_table
from tests.checkpoints.writers import Tensors, write_huggingface, write_llama2c, write_meta

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
CASES: dict[str, dict[str, Any]] = {
    "grouped": {},
    "one kv head": {"num_key_value_heads": 1},
    "no grouping": {"num_key_value_heads": 8},
    "tied": {"tie_word_embeddings": True},
    "wide heads": {"head_dim": 24},
    "odd hidden": {"intermediate_size": 77},
    "theta and eps": {"rope_theta": 1e6, "rms_norm_eps": 1e-6},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "llama3": {"rope_scaling": LLAMA3, "rope_theta": 500000.0},
    "yarn": {"rope_scaling": YARN},
    "yarn with mscale": {"rope_scaling": {**YARN, "mscale": 1.3, "mscale_all_dim": 0.7}},
    "yarn untruncated": {"rope_scaling": {**YARN, "truncate": False, "beta_fast": 16.0}},
    "yarn with a factor": {"rope_scaling": {**YARN, "attention_factor": 1.4}},
}


def hf_config(**fields: Any) -> LlamaConfig:
    sizes = {
        "vocab_size": 98,
        "hidden_size": 64,
        "intermediate_size": 112,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.2,
    }
    return LlamaConfig(**{**sizes, **fields})


def hf_model(config: LlamaConfig) -> Any:
    torch.manual_seed(7)
    return LlamaForCausalLM(config).train(False)


def logits(checkpoint: Checkpoint, ids: list[int], backend: str, chunk: int) -> torch.Tensor:
    """Logits of all positions, prefilled `chunk` tokens at a time over shuffled pages."""
    model = build_model(checkpoint, choose_backend(backend, "cpu"), "fp32")
    cache = KVCache(model.config, 0, torch.float32, torch.device("cpu"), page=16)
    cache.grow(cache.pages_for(len(ids)))
    pages = cache.take(cache.free_pages)[::-1]
    found = []
    for start in range(0, len(ids), chunk):
        part = ids[start : start + chunk]
        batch = build_batch([Span(pages, start, len(part))], cache.page, torch.device("cpu"))
        x = model.forward(torch.tensor(part), batch, cache.layers)
        found.append(model.logits(x))
    return torch.cat(found)


def check(
    checkpoint: Checkpoint,
    wanted: Any,
    length: int = 50,
    chunk: int = 19,
    backends: tuple[str, ...] = ("torch", "numpy"),
) -> None:
    ids = torch.randint(wanted.config.vocab_size, (length,)).tolist()
    with torch.inference_mode():
        reference = wanted(torch.tensor([ids])).logits[0]
    for backend in backends:
        out = logits(checkpoint, ids, backend, chunk)
        assert (out - reference).abs().max() < 1e-4, backend


@pytest.mark.parametrize("name", CASES)
def test_hugging_face(name: str, tmp_path: Path) -> None:
    wanted = hf_model(hf_config(**CASES[name]))
    wanted.save_pretrained(tmp_path)
    check(open_checkpoint(tmp_path), wanted)


@pytest.mark.parametrize("name", ["grouped", "linear", "llama3", "yarn"])
def test_long_positions(name: str, tmp_path: Path) -> None:
    config = hf_config(
        **CASES[name], num_hidden_layers=1, max_position_embeddings=4096, hidden_size=32
    )
    wanted = hf_model(config)
    wanted.save_pretrained(tmp_path)
    check(open_checkpoint(tmp_path), wanted, length=2500, chunk=700, backends=("torch",))


@pytest.mark.parametrize("name", CASES)
def test_rope_table_to_131072(name: str, tmp_path: Path) -> None:
    config = hf_config(**{**CASES[name], "max_position_embeddings": 131072, "head_dim": 64})
    hf_model(config).save_pretrained(tmp_path)
    cos, sin = rope_table(open_checkpoint(tmp_path).config, 131072)
    positions = torch.tensor([[0, 1, 4095, 119999, 120000, 131071]])
    wanted = LlamaRotaryEmbedding(config)(torch.zeros(1, dtype=torch.float32), positions)
    for table, reference in zip((cos, sin), wanted, strict=True):
        assert torch.equal(table[positions[0]], reference[0, :, :32])


def canonical(folder: Path) -> tuple[Checkpoint, Tensors]:
    checkpoint = open_checkpoint(folder)
    names = [name for name, _ in tensor_shapes(checkpoint.config)]
    return checkpoint, {name: checkpoint.read(name) for name in names}


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("by_rows", [False, True])
def test_meta(shards: int, by_rows: bool, tmp_path: Path) -> None:
    wanted = hf_model(hf_config())
    wanted.save_pretrained(tmp_path / "hf")
    checkpoint, tensors = canonical(tmp_path / "hf")
    write_meta(tmp_path / "meta", checkpoint.config, tensors, shards=shards, embed_by_rows=by_rows)
    check(open_checkpoint(tmp_path / "meta", norm_eps=wanted.config.rms_norm_eps), wanted)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("version", [0, 1])
def test_llama2c(version: int, tied: bool, tmp_path: Path) -> None:
    wanted = hf_model(hf_config(tie_word_embeddings=tied))
    wanted.save_pretrained(tmp_path / "hf")
    checkpoint, tensors = canonical(tmp_path / "hf")
    path = tmp_path / "model.bin"
    write_llama2c(path, checkpoint.config, tensors, version=version)
    check(open_checkpoint(path, norm_eps=wanted.config.rms_norm_eps), wanted)


@pytest.mark.parametrize("tied", [False, True])
def test_llama2c_int8(tied: bool, tmp_path: Path) -> None:
    hf_model(hf_config(tie_word_embeddings=tied)).save_pretrained(tmp_path / "hf")
    checkpoint, tensors = canonical(tmp_path / "hf")
    path = tmp_path / "model.bin"
    write_llama2c(path, checkpoint.config, tensors, version=2, group=32)
    quantized = open_checkpoint(path, norm_eps=checkpoint.config.norm_eps)
    rounded = {name: quantized.read(name) for name in tensors}
    assert any(not torch.equal(rounded[name], tensors[name]) for name in tensors)
    write_huggingface(tmp_path / "rounded", quantized.config, rounded)
    wanted: Any = LlamaForCausalLM.from_pretrained(tmp_path / "rounded", dtype=torch.float32)
    check(quantized, wanted)


@pytest.mark.parametrize(
    ("text", "scaling"),
    [
        ("linear:4", {"rope_type": "linear", "factor": 4.0}),
        ("llama3:4", {**LLAMA3, "factor": 4.0}),
        ("yarn:4", {**YARN, "original_max_position_embeddings": 128}),
    ],
)
def test_scaling_override(text: str, scaling: dict[str, Any], tmp_path: Path) -> None:
    hf_model(hf_config(max_position_embeddings=128)).save_pretrained(tmp_path)
    wanted = hf_model(hf_config(max_position_embeddings=512, rope_scaling=scaling))
    stretched = open_checkpoint(tmp_path, rope_scaling=text)
    assert stretched.config.context == 512
    check(stretched, wanted, length=500, chunk=190, backends=("torch",))
    with pytest.raises(AssertionError):
        check(open_checkpoint(tmp_path), wanted, backends=("torch",))


def test_theta_override(tmp_path: Path) -> None:
    wanted = hf_model(hf_config(rope_theta=1e6))
    wanted.save_pretrained(tmp_path / "hf")
    checkpoint, tensors = canonical(tmp_path / "hf")
    path = tmp_path / "model.bin"
    write_llama2c(path, checkpoint.config, tensors)
    eps = wanted.config.rms_norm_eps
    check(open_checkpoint(path, rope_theta=1e6, norm_eps=eps), wanted)
    with pytest.raises(AssertionError):
        check(open_checkpoint(path, norm_eps=eps), wanted)

"""What Meta's params.json leaves unsaid."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama2gpu.checkpoints import open_checkpoint
from llama2gpu.checkpoints.fields import Fields
from llama2gpu.checkpoints.meta import _context, _scaling
from llama2gpu.config import RopeScaling
from llama2gpu.errors import CheckpointError, UnsupportedModelError
from tests.checkpoints.writers import CONFIG, random_tensors, write_meta

CONTEXTS = {
    "Llama 1 7B": (2048, {"dim": 4096, "n_heads": 32, "norm_eps": 1e-6}),
    "Llama 1 65B": (2048, {"dim": 8192, "n_heads": 64, "norm_eps": 1e-5}),
    "Llama 2 7B": (4096, {"dim": 4096, "n_heads": 32, "norm_eps": 1e-5}),
    "Llama 2 70B": (4096, {"dim": 8192, "n_heads": 64, "n_kv_heads": 8, "norm_eps": 1e-5}),
    "Code Llama": (16384, {"dim": 4096, "n_heads": 32, "rope_theta": 1e6}),
    "Llama 3": (8192, {"dim": 4096, "n_heads": 32, "n_kv_heads": 8, "rope_theta": 5e5}),
}


@pytest.mark.parametrize(("context", "params"), CONTEXTS.values(), ids=CONTEXTS)
def test_context(context: int, params: dict[str, Any]) -> None:
    assert _context(Fields("params.json", params), False) == context


def test_scaled_rope(tmp_path: Path) -> None:
    params = {"use_scaled_rope": True, "rope_theta": 500000.0, "vocab_size": CONFIG.vocab}
    folder = write_meta(tmp_path, CONFIG, random_tensors(CONFIG), params=params)
    config = open_checkpoint(folder).config
    assert config.context == 131072
    assert config.rope_scaling == RopeScaling("llama3", 32.0, 1.0, 4.0, 8192)
    assert [_scaling(dim).factor for dim in (2048, 3072, 4096, 8192, 16384)] == [32, 32, 8, 8, 8]


def test_tokenizer_of_the_folder_or_its_parent(tmp_path: Path) -> None:
    folder = write_meta(tmp_path / "7B", CONFIG, random_tensors(CONFIG))
    (tmp_path / "tokenizer.model").touch()
    checkpoint = open_checkpoint(folder)
    assert checkpoint.tokenizer_files == (tmp_path / "tokenizer.model",)
    assert (checkpoint.bos_id, checkpoint.stop_ids) == (None, ())


def test_wrong_vocabulary(tmp_path: Path) -> None:
    folder = write_meta(tmp_path, CONFIG, random_tensors(CONFIG), params={"vocab_size": 97})
    with pytest.raises(CheckpointError, match=r"tok_embeddings.weight is \[96, 32\]"):
        open_checkpoint(folder)


def test_missing_shard(tmp_path: Path) -> None:
    folder = write_meta(tmp_path, CONFIG, random_tensors(CONFIG), shards=2)
    (folder / "consolidated.00.pth").unlink()
    with pytest.raises(CheckpointError, match=r"lacks consolidated\.00\.pth"):
        open_checkpoint(folder)


def test_shards_of_different_models(tmp_path: Path) -> None:
    folder = write_meta(tmp_path / "a", CONFIG, random_tensors(CONFIG), shards=2)
    other = replace(CONFIG, layers=1, hidden=48)
    write_meta(tmp_path / "b", other, random_tensors(other), shards=2)
    (tmp_path / "b" / "consolidated.01.pth").replace(folder / "consolidated.01.pth")
    with pytest.raises(CheckpointError, match="different models"):
        open_checkpoint(folder)


@pytest.mark.parametrize("key", ["moe", "quantization_args", "sliding_window"])
def test_other_models(tmp_path: Path, key: str) -> None:
    folder = write_meta(tmp_path, CONFIG, random_tensors(CONFIG), params={key: {"a": 1}})
    with pytest.raises(UnsupportedModelError, match=key):
        open_checkpoint(folder)

"""The keys of GGUF files, and one line for models that are not run."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from llama2gpu.checkpoints import open_checkpoint
from llama2gpu.config import RopeScaling
from llama2gpu.errors import CheckpointError, UnsupportedModelError
from tests.checkpoints.gguf_files import CONFIG, write_gguf


def refuse(path: Path, match: str, kind: type[CheckpointError] = UnsupportedModelError) -> None:
    with pytest.raises(kind, match=match) as error:
        open_checkpoint(path)
    message = str(error.value)
    assert str(path) in message
    assert message.isprintable()
    assert len(message) < 600


def test_keys(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "m.gguf",
        llama__attention__key_length=64,
        llama__attention__value_length=64,
        llama__rope__dimension_count=64,
        llama__vocab_size=5,
        llama__rope__freq_base=500000.0,
        general__name="a model",
        tokenizer__ggml__bos_token_id=7,
        tokenizer__ggml__eos_token_id=8,
        tokenizer__ggml__eot_token_id=9,
        tokenizer__ggml__eom_token_id=0xFFFFFFFF,
        tokenizer__chat_template="{{ 'hi' }}",
    )
    checkpoint = open_checkpoint(path)
    assert checkpoint.config == replace(CONFIG, rope_theta=500000.0)
    assert (checkpoint.bos_id, checkpoint.stop_ids) == (7, (8, 9))
    assert checkpoint.chat_template == "{{ 'hi' }}"
    assert open_checkpoint(path, rope_theta=2.0, norm_eps=0.5).config.norm_eps == 0.5


def test_defaults(tmp_path: Path) -> None:
    config = replace(CONFIG, kv_heads=4, tied=True)
    absent: dict[str, Any] = dict.fromkeys(("llama__rope__freq_base", "llama__vocab_size"))
    path = write_gguf(tmp_path / "m.gguf", config, llama__attention__head_count_kv=None, **absent)
    checkpoint = open_checkpoint(path)
    assert checkpoint.config == config
    assert (checkpoint.bos_id, checkpoint.stop_ids) == (None, ())
    assert checkpoint.chat_template is None
    assert checkpoint.embedded_tokenizer() is None


def test_heads_of_their_own_size(tmp_path: Path) -> None:
    config = replace(CONFIG, head_dim=32)
    path = write_gguf(tmp_path / "m.gguf", config, llama__attention__key_length=32)
    assert open_checkpoint(path).config == config


SCALINGS: list[tuple[dict[str, Any], RopeScaling | None]] = [
    ({"scaling__type": "none", "scaling__factor": 4.0}, None),
    ({"scaling__type": "linear", "scaling__factor": 4.0}, RopeScaling("linear", 4.0)),
    ({"scale_linear": 2.5}, RopeScaling("linear", 2.5)),
    ({"scaling__factor": 1.0}, None),
    (
        {
            "scaling__type": "yarn",
            "scaling__factor": 16.0,
            "scaling__original_context_length": 32,
        },
        RopeScaling("yarn", 16.0, original_context=32),
    ),
    (
        {
            "scaling__type": "yarn",
            "scaling__factor": 4.0,
            "scaling__yarn_attn_factor": 0.75,
            "scaling__yarn_beta_fast": 16.0,
            "scaling__yarn_beta_slow": 2.0,
        },
        RopeScaling(
            "yarn",
            4.0,
            original_context=64,
            attention_factor=0.75,
            beta_fast=16.0,
            beta_slow=2.0,
        ),
    ),
]


@pytest.mark.parametrize(("given", "scaling"), SCALINGS)
def test_rope(tmp_path: Path, given: dict[str, Any], scaling: RopeScaling | None) -> None:
    keys = {f"llama__rope__{key}": value for key, value in given.items()}
    assert open_checkpoint(write_gguf(tmp_path / "m.gguf", **keys)).config.rope_scaling == scaling


def test_yarns_factor_times_its_own(tmp_path: Path) -> None:
    keys: dict[str, Any] = {
        "llama__rope__scaling__type": "yarn",
        "llama__rope__scaling__factor": 4.0,
        "llama__rope__scaling__attn_factor": 0.5,
    }
    found = open_checkpoint(write_gguf(tmp_path / "m.gguf", **keys)).config.rope_scaling
    assert found is not None
    assert found.attention_factor == pytest.approx(0.5 * (0.1 * math.log(4) + 1))


def divisors(theta: float, factor: float, low: float, high: float, original: int) -> Any:
    """What llama.cpp's converter writes, frequency by frequency."""
    found = []
    for i in range(0, 64, 2):
        wavelength = 2 * math.pi * theta ** (i / 64)
        smooth = (original / wavelength - low) / (high - low)
        if wavelength < original / high:
            found.append(1.0)
        elif wavelength > original / low:
            found.append(factor)
        else:
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, np.float32)


@pytest.mark.parametrize(
    ("theta", "factor", "original"),
    [(500000.0, 8.0, 8192), (500000.0, 32.0, 8192), (10000.0, 8.0, 8192), (10000.0, 2.5, 1024)],
)
def test_llama3_scaling(tmp_path: Path, theta: float, factor: float, original: int) -> None:
    table = divisors(theta, factor, 1.0, 4.0, original)
    told: dict[str, Any] = (
        {} if original == 8192 else {"scaling__original_context_length": original}
    )
    path = write_gguf(
        tmp_path / "m.gguf",
        blocks={"rope_freqs.weight": (table, Kind.F32)},
        llama__rope__freq_base=theta,
        **{f"llama__rope__{key}": value for key, value in told.items()},
    )
    config = open_checkpoint(path).config
    assert config.rope_scaling is not None
    assert config.rope_scaling.factor == pytest.approx(factor, rel=1e-4)
    if factor.is_integer():
        wanted = RopeScaling("llama3", factor, 1.0, 4.0, original)
        assert config == replace(CONFIG, rope_theta=theta, rope_scaling=wanted)


def test_divisors_of_another_kind(tmp_path: Path) -> None:
    for table, error in (
        (np.linspace(1, 9, 32, dtype=np.float32), "another kind than Llama 3's"),
        (divisors(500000.0, 8.0, 1.0, 2.0, 8192), "another kind than Llama 3's"),
        (np.full(32, np.nan, np.float32), "another kind than Llama 3's"),
        (np.zeros(32, np.float32), "another kind than Llama 3's"),
    ):
        blocks = {"rope_freqs.weight": (table, Kind.F32)}
        path = write_gguf(tmp_path / "m.gguf", blocks=blocks, llama__rope__freq_base=500000.0)
        refuse(path, error)
    blocks = {"rope_freqs.weight": (np.ones(32, np.float32), Kind.F32)}
    assert open_checkpoint(write_gguf(tmp_path / "m.gguf", blocks=blocks)).config == CONFIG
    blocks = {"rope_freqs.weight": (np.ones(31, np.float32), Kind.F32)}
    refuse(write_gguf(tmp_path / "m.gguf", blocks=blocks), "must be F32", CheckpointError)


def test_other_architectures(tmp_path: Path) -> None:
    refuse(write_gguf(tmp_path / "m.gguf", arch="qwen2"), "architecture 'qwen2' is not supported")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"llama__expert_count": 8}, "a mixture of 8 experts"),
    ({"llama__attention__sliding_window": 16}, "a sliding window of 16 in 64"),
    ({"llama__attention__head_count_kv": [2, 1]}, "head_count_kv for each layer"),
    ({"llama__attention__value_length": 32}, "value_length 32 with heads of 64"),
    ({"llama__rope__dimension_count": 16}, "dimension_count 16 with heads of 64"),
    ({"llama__rope__scaling__type": "longrope"}, "RoPE scaling 'longrope'"),
]


@pytest.mark.parametrize(("fields", "match"), REFUSED)
def test_models_that_are_not_run(tmp_path: Path, fields: dict[str, Any], match: str) -> None:
    refuse(write_gguf(tmp_path / "m.gguf", **fields), match)


def test_biases_and_strange_tensors(tmp_path: Path) -> None:
    one = np.ones(CONFIG.dim, np.float32), Kind.F32
    blocks: dict[str, tuple[np.ndarray[Any, Any], Kind]] = {"blk.0.attn_q.bias": one}
    refuse(write_gguf(tmp_path / "m.gguf", blocks=blocks), r"a bias \(blk\.0\.attn_q\.bias\)")
    blocks = {"blk.0.attn_q_norm.weight": one}
    refuse(write_gguf(tmp_path / "m.gguf", blocks=blocks), "holds the tensor blk.0.attn_q_norm")
    double = np.ones((CONFIG.dim, CONFIG.dim)), Kind.F64
    blocks = {"blk.0.attn_q.weight": double}
    refuse(write_gguf(tmp_path / "m.gguf", blocks=blocks), "is F64, which the gguf package can't")


def test_a_vocabulary_alone(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", tensors={})
    refuse(path, "holds a vocabulary alone: give the file of the whole model")


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"llama__block_count": None}, "lacks llama.block_count"),
    ({"llama__block_count": 2}, "lacks the tensor blk.1.attn_norm.weight"),
    ({"llama__embedding_length": 128}, r"is \[96, 256\], but the configuration makes it"),
    ({"llama__embedding_length": "x"}, "must be a whole number"),
    ({"llama__attention__head_count": 0}, "heads is 0"),
    ({"llama__attention__layer_norm_rms_epsilon": math.nan}, "must be a finite number"),
    ({"llama__rope__scaling__factor": -1.0}, "is -1.0, below 0"),
    ({"tokenizer__ggml__bos_token_id": 96}, "bos_token_id is 96, but there are 96 tokens"),
    ({"tokenizer__ggml__tokens": [1, 2]}, "tokens holds 2 values of type"),
    (
        {"tokenizer__ggml__tokens": ["a"], "tokenizer__ggml__token_type": [1, 2]},
        "has 2 entries for 1 tokens",
    ),
]


@pytest.mark.parametrize(("fields", "match"), BROKEN)
def test_broken_keys(tmp_path: Path, fields: dict[str, Any], match: str) -> None:
    refuse(write_gguf(tmp_path / "m.gguf", **fields), match, CheckpointError)

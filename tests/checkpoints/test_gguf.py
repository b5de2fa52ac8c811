"""GGUF files: every tensor to the bit, every key, and one line for what is not supported."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from llama2gpu.checkpoints import open_checkpoint, tensor_shapes
from llama2gpu.config import Config, RopeScaling
from llama2gpu.errors import CheckpointError, UnsupportedModelError
from llama2gpu.quant import Dense, Int4, Int8
from tests.checkpoints.gguf_files import CONFIG, blocks_of, gguf_name, kind_of, write_gguf
from tests.checkpoints.writers import random_tensors

PLAIN = {Kind.F32: torch.float32, Kind.F16: torch.float16, Kind.BF16: torch.bfloat16}


def quantizable() -> list[Kind]:
    """The types that the package can write."""
    found = []
    for kind in Kind:
        try:
            gguf.quantize(np.ones((1, 256), np.float32), kind)
        except (NotImplementedError, KeyError):
            continue
        found.append(kind)
    return found


def readable() -> list[Kind]:
    """The types of blocks that the package can read."""
    found = []
    for kind, (_, nbytes) in gguf.GGML_QUANT_SIZES.items():
        try:
            gguf.dequantize(np.zeros((1, nbytes), np.uint8), kind)
        except NotImplementedError:
            continue
        found.append(kind)
    return [kind for kind in found if kind not in PLAIN]


def refuse(path: Path, match: str, kind: type[CheckpointError] = UnsupportedModelError) -> None:
    with pytest.raises(kind, match=match) as error:
        open_checkpoint(path)
    message = str(error.value)
    assert str(path) in message
    assert message.isprintable()
    assert len(message) < 600


@pytest.mark.parametrize("kind", quantizable(), ids=lambda kind: kind.name)
def test_every_type_that_can_be_written(tmp_path: Path, kind: Kind) -> None:
    tensors = random_tensors(CONFIG)
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", CONFIG, tensors, kind))
    assert checkpoint.config == CONFIG
    assert checkpoint.format == "GGUF v3"
    assert checkpoint.dtype == PLAIN.get(kind, torch.float32)
    assert checkpoint.quantization == (None if kind in PLAIN else kind.name)
    sizes = {tensor.name: tensor for tensor in checkpoint.tensors()}
    for name, shape in tensor_shapes(CONFIG):
        data, its_kind = blocks_of(tensors[name], kind), kind_of(tensors[name], kind)
        wanted = torch.from_numpy(gguf.dequantize(data.view(np.uint8), its_kind)).view(shape)
        read = checkpoint.read(name)
        assert read.dtype == PLAIN.get(its_kind, torch.float32)
        assert torch.equal(read.float(), wanted), name
        assert (sizes[name].shape, sizes[name].nbytes) == (shape, data.nbytes)
        for dtype in PLAIN.values():
            out = torch.full(shape, math.nan, dtype=dtype)
            checkpoint.read_into(name, out)
            assert torch.equal(out, wanted.to(dtype)), name


@pytest.mark.parametrize("kind", readable(), ids=lambda kind: kind.name)
def test_every_type_that_can_be_read(tmp_path: Path, kind: Kind) -> None:
    """Random blocks: whatever scales they have, they are read as the package reads them."""
    shape = (CONFIG.hidden, CONFIG.dim)
    columns, nbytes = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (shape[0], shape[1] // columns, nbytes), dtype=np.uint8)
    if kind in (Kind.Q4_0, Kind.Q8_0):
        data[:, :, 1] &= 0x3B  # no infinities
    data = data.reshape(shape[0], -1)
    blocks = {"blk.0.ffn_up.weight": (data, kind)}
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", blocks=blocks))
    with np.errstate(all="ignore"):
        wanted = torch.from_numpy(gguf.dequantize(data, kind))
    read = checkpoint.read("layers.0.w3")
    assert torch.equal(read.isnan(), wanted.isnan())
    assert torch.equal(read.nan_to_num(0.5), wanted.nan_to_num(0.5))
    assert checkpoint.quantization == kind.name


@pytest.mark.parametrize(("kind", "held"), [(Kind.Q4_0, Int4), (Kind.Q8_0, Int8)])
def test_integers_stay_integers(tmp_path: Path, kind: Kind, held: type[Int4 | Int8]) -> None:
    tensors = random_tensors(CONFIG)
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", CONFIG, tensors, kind))
    for name, shape in tensor_shapes(CONFIG):
        if len(shape) == 1:
            continue
        assert checkpoint.packs(name)
        weight = checkpoint.weight(name)
        assert isinstance(weight, held)
        assert (weight.group, weight.scales.dtype) == (32, torch.float16)
        data = blocks_of(tensors[name], kind)
        wanted = torch.from_numpy(gguf.dequantize(data, kind)).double()
        assert torch.equal(weight.dequantize(torch.float64), wanted), name
        columns = shape[1] // 32
        scales = data.reshape(shape[0], columns, -1)[:, :, :2].copy().view(np.float16)[:, :, 0]
        assert torch.equal(weight.scales, torch.from_numpy(scales)), name


@pytest.mark.parametrize("kind", [Kind.Q4_1, Kind.Q5_0])
def test_other_types_become_dense(tmp_path: Path, kind: Kind) -> None:
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", kind=kind))
    weight = checkpoint.weight("layers.0.w1")
    assert isinstance(weight, Dense)
    assert torch.equal(weight.data, checkpoint.read("layers.0.w1"))
    assert not checkpoint.packs("layers.0.w1")


def test_rows_that_are_no_blocks(tmp_path: Path) -> None:
    """Each tensor has its own type; the kinds are told by their share of the file."""
    config = replace(CONFIG, hidden=344)
    tensors = random_tensors(config)
    q6 = np.zeros((config.vocab, 210), np.uint8)
    blocks = {"output.weight": (q6, Kind.Q6_K)}
    path = write_gguf(tmp_path / "m.gguf", config, tensors, Kind.Q4_0, blocks=blocks)
    checkpoint = open_checkpoint(path)
    assert checkpoint.quantization == "Q4_0 and Q6_K"
    kinds = {tensor.name: tensor.dtype for tensor in checkpoint.tensors()}
    assert (kinds["layers.0.w2"], kinds["layers.0.w1"]) == ("float32", "Q4_0")
    assert torch.equal(checkpoint.read("layers.0.w2"), tensors["layers.0.w2"])


def test_infinite_scales(tmp_path: Path) -> None:
    data = blocks_of(torch.ones(CONFIG.dim, CONFIG.dim), Kind.Q8_0)
    data[7, :2] = np.array([np.inf], np.float16).view(np.uint8)
    blocks = {"blk.0.attn_q.weight": (data, Kind.Q8_0)}
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", blocks=blocks))
    with pytest.raises(CheckpointError, match=r"scales of blk\.0\.attn_q\.weight hold NaN"):
        checkpoint.weight("layers.0.wq")


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


def write_parts(folder: Path, count: int = 3) -> list[Path]:
    """A model in parts: all keys in the first, tensors over all of them."""
    tensors = list(random_tensors(CONFIG).items())
    parts = []
    for n in range(count):
        keys: dict[str, Any] = {} if n == 0 else dict.fromkeys(KEYS)
        parts.append(
            write_gguf(
                folder / f"m-{n + 1:05d}-of-{count:05d}.gguf",
                tensors=dict(tensors[n::count]),
                split__no=n,
                split__count=count,
                split__tensors__count=len(tensors),
                **keys,
            )
        )
    return parts


KEYS = ("llama__block_count", "llama__embedding_length", "llama__context_length")


def test_parts(tmp_path: Path) -> None:
    parts, tensors = write_parts(tmp_path), random_tensors(CONFIG)
    for path in parts:
        checkpoint = open_checkpoint(path)
        assert checkpoint.config == CONFIG
        for name, tensor in tensors.items():
            assert torch.equal(checkpoint.read(name), tensor)
    assert gguf_name("embed") == "token_embd.weight"


def test_parts_that_are_missing_or_mixed(tmp_path: Path) -> None:
    first, second, third = write_parts(tmp_path)
    third.rename(tmp_path / "kept")
    with pytest.raises(CheckpointError, match=r"m-00003-of-00003\.gguf is missing"):
        open_checkpoint(first)
    third.write_bytes(second.read_bytes())
    with pytest.raises(CheckpointError, match="is not part 3 of 3: download the parts again"):
        open_checkpoint(first)
    alone = first.rename(tmp_path / "alone.gguf")
    refuse(alone, r"is one of 3 parts, .*llama-gguf-split --merge", CheckpointError)


def test_a_config_with_its_own_sizes_opens(tmp_path: Path) -> None:
    config = Config(
        dim=64, hidden=96, layers=3, heads=2, kv_heads=1, head_dim=32, vocab=33, context=8
    )
    tensors = random_tensors(config)
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", config, tensors, Kind.F16))
    for name, tensor in tensors.items():
        wanted = tensor.half() if tensor.dim() == 2 else tensor
        assert torch.equal(checkpoint.read(name), wanted), name

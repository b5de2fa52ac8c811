"""What is quantized and saved is, once loaded, what quantizing on load gives: byte by byte."""

import gc
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from llama2gpu.checkpoints import Checkpoint, RandomCheckpoint, huggingface_write, open_checkpoint
from llama2gpu.checkpoints.save import save_huggingface
from llama2gpu.config import Config
from llama2gpu.errors import CheckpointError, RequestError
from llama2gpu.measure.memory import AnonymousPeak
from llama2gpu.quant import Dense, Int4, Int8, quantize, weighted_error
from llama2gpu.quant.spec import parse_spec
from llama2gpu.quantizer import Outcome, RoundingQuantizer
from tests.quant.models import (
    CONFIG,
    SPECS,
    TIED,
    assert_equal,
    canonical,
    loaded_norms,
    quantizer_of,
    random_model,
)


def norms(checkpoint: Checkpoint) -> list[torch.Tensor]:
    shapes = [info.name for info in checkpoint.tensors() if "norm" in info.name]
    return [checkpoint.read(name) for name in sorted(shapes)]


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["untied", "tied"])
@pytest.mark.parametrize("asked", SPECS)
def test_as_on_load(asked: str, config: Config, tmp_path: Path) -> None:
    source = random_model(tmp_path / "in", config)
    outcomes: list[Outcome] = []
    save_huggingface(source, tmp_path / "out", quantizer_of(asked, config, outcomes.append))
    saved = open_checkpoint(tmp_path / "out")
    loaded = canonical(source, quantizer_of(asked, config))
    assert_equal(canonical(saved), loaded)
    spec = parse_spec(asked)
    assert saved.config == config
    assert saved.quantization is not None
    assert saved.quantization.startswith(f"GPTQ {spec.kind}")
    assert len(outcomes) == 4 * config.layers + spec.head
    kind = {"int8": Int8, "int4": Int4}[spec.kind]
    ops = {name.split()[1]: type(weight) for name, weight in loaded.items()}
    assert ops.pop("embed") is (kind if spec.head and config.tied else Dense)
    assert ops.pop("logits") is (kind if spec.head else Dense)
    assert set(ops.values()) == {kind}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("asked", ["int4:32+zeros", "int4:32:awq", "int4:32:awq+head", "int8"])
def test_other_types(asked: str, dtype: torch.dtype, tmp_path: Path) -> None:
    source = RandomCheckpoint(CONFIG, dtype)
    save_huggingface(source, tmp_path / "out", quantizer_of(asked, CONFIG))
    saved = open_checkpoint(tmp_path / "out")
    assert saved.dtype == dtype
    assert_equal(canonical(saved), canonical(source, quantizer_of(asked, CONFIG)))
    # awq divides norms: what they are rounded to in the folder, they are on load
    assert torch.equal(loaded_norms(saved), loaded_norms(source, quantizer_of(asked, CONFIG)))


def test_without_a_quantizer(tmp_path: Path) -> None:
    source = random_model(tmp_path / "in")
    save_huggingface(source, tmp_path / "out")
    saved = open_checkpoint(tmp_path / "out")
    assert saved.quantization is None
    assert_equal(canonical(saved), canonical(source))
    for norm, other in zip(norms(saved), norms(source), strict=True):
        assert torch.equal(norm, other)


def test_saved_again(tmp_path: Path) -> None:
    """A quantized folder is copied as it is, and can't be quantized once more."""
    source = random_model(tmp_path / "in")
    save_huggingface(source, tmp_path / "once", quantizer_of("int4:32+zeros", CONFIG))
    once = open_checkpoint(tmp_path / "once")
    save_huggingface(once, tmp_path / "twice")
    assert_equal(canonical(open_checkpoint(tmp_path / "twice")), canonical(once))
    for asked in ("int8", "int4:gptq"):
        with pytest.raises(RequestError, match="quantized already"):
            save_huggingface(once, tmp_path / "thrice", quantizer_of(asked, CONFIG))
    assert not (tmp_path / "thrice").exists()


def test_errors_are_those_of_the_matrices(tmp_path: Path) -> None:
    source = random_model(tmp_path / "in")
    plain, outcomes = canonical(source), list[Outcome]()
    found = canonical(source, quantizer_of("int4:32", CONFIG, outcomes.append))
    assert len(outcomes) == 8
    matrices = [name for name in plain if not name.endswith(("embed", "logits"))]
    for outcome, name in zip(outcomes, matrices, strict=True):
        dense = plain[name]
        assert isinstance(dense, Dense)
        assert outcome.error == pytest.approx(weighted_error(dense.data, found[name]))


def test_what_stays_dense(tmp_path: Path) -> None:
    """No group divides 172 columns, no word 172 rows of int4; int8 then has scales of rows."""
    config = Config(dim=64, hidden=172, layers=1, heads=8, kv_heads=4, head_dim=8, vocab=97,
                    context=32)  # fmt: skip
    source = RandomCheckpoint(config, torch.float32)
    for asked, dense in (("int4+head", {"w_13", "w_2", "output"}), ("int8:32+head", {"output"})):
        outcomes: list[Outcome] = []
        save_huggingface(source, tmp_path / asked, quantizer_of(asked, config, outcomes.append))
        stay = {o.name.rpartition(".")[2] for o in outcomes if not o.quantized}
        assert stay == dense
        found = canonical(open_checkpoint(tmp_path / asked))
        assert_equal(found, canonical(source, quantizer_of(asked, config)))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("asked", ["int8", "int4:32:hqq", "int4:gptq"])
def test_weights_that_are_no_numbers(
    asked: str, wrong: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = RandomCheckpoint.read

    def damaged(self: RandomCheckpoint, name: str) -> torch.Tensor:
        tensor = read(self, name)
        if name == "layers.1.w3":
            tensor[7, 9] = wrong
        return tensor

    monkeypatch.setattr(RandomCheckpoint, "read", damaged)
    source = RandomCheckpoint(CONFIG, torch.float32)
    with pytest.raises((CheckpointError, RequestError), match="NaN or infinity") as raised:
        save_huggingface(source, tmp_path / "out", quantizer_of(asked, CONFIG))
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("asked", ["int8", "int4:32+zeros", "int4:gptq", "int4:awq", "int4:hqq"])
def test_zeros(asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of zeros stays one, and so does a whole matrix."""
    read = RandomCheckpoint.read

    def damaged(self: RandomCheckpoint, name: str) -> torch.Tensor:
        tensor = read(self, name)
        if name in ("layers.0.wo", "layers.0.wk"):
            tensor[3 : None if name.endswith("wo") else 4] = 0
        return tensor

    monkeypatch.setattr(RandomCheckpoint, "read", damaged)
    source = RandomCheckpoint(CONFIG, torch.float32)
    save_huggingface(source, tmp_path / "out", quantizer_of(asked, CONFIG))
    saved = open_checkpoint(tmp_path / "out")
    for name in ("layers.0.wo", "layers.0.wk"):
        matrix = saved.weight(name).dequantize(torch.float32)
        assert not matrix[3].any()
        assert matrix[0].any()


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = random_model(tmp_path / "in")

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_write, "save_file", full)
    with pytest.raises(RequestError, match="No space left"):
        save_huggingface(source, tmp_path / "out", quantizer_of("int4", CONFIG))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_progress_ends_at_the_whole(tmp_path: Path) -> None:
    source, seen = random_model(tmp_path / "in"), list[tuple[int, int]]()

    def progress(done: int, total: int) -> None:
        seen.append((done, total))

    save_huggingface(source, tmp_path / "out", quantizer_of("int8", CONFIG), progress=progress)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (CONFIG.parameters * 4, CONFIG.parameters * 4)


def peak_of_saving(asked: str, folder: Path, config: Config, shard: int) -> int:
    """Bytes of anonymous memory that the second of two savings takes in this process."""
    huggingface_write.SHARD_BYTES = shard
    source: Any = RandomCheckpoint(config, torch.float32)
    save_huggingface(source, folder / "warm", RoundingQuantizer(parse_spec(asked), config))
    gc.collect()
    with AnonymousPeak() as memory:
        save_huggingface(source, folder / "out", RoundingQuantizer(parse_spec(asked), config))
    return memory.peak


@pytest.mark.parametrize("asked", ["int4", "int8"])
def test_memory_is_a_layer_and_a_shard(
    asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many layers there are; the embedding, which is the head too, is a layer as well."""
    config = Config(dim=512, hidden=1536, layers=12, heads=8, kv_heads=8, head_dim=64, vocab=1024,
                    context=64, tied=True)  # fmt: skip
    shard = 4 << 20
    layer = 4 * (4 * 512 * 512 + 3 * 512 * 1536)
    # A process of its own, in which memory that is freed is given back: then what is held is seen.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(1 << 16))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
        peak = alone.submit(peak_of_saving, asked, tmp_path, config, shard).result()
    assert peak < 3 * layer + shard < config.parameters * 4 / 3


def test_quantize_is_what_the_quantizer_does(tmp_path: Path) -> None:
    source = random_model(tmp_path / "in")
    plain, found = canonical(source), canonical(source, quantizer_of("int4:64", CONFIG))
    name = next(name for name in plain if name.endswith("qkv"))
    dense = plain[name]
    assert isinstance(dense, Dense)
    wanted = quantize(dense.data, parse_spec("int4:64"), 64)
    assert_equal({name: found[name]}, {name: wanted})

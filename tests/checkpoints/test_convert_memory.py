"""Converting takes memory for a part of a model, however large it is."""

import gc
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch

from llama2gpu.checkpoints import RandomCheckpoint, huggingface_write, open_checkpoint
from llama2gpu.checkpoints.convert import Target, convert
from llama2gpu.config import Config
from llama2gpu.measure.memory import AnonymousPeak, tells_memory

BIG = Config(
    dim=512, hidden=1536, layers=16, heads=8, kv_heads=8, head_dim=64, vocab=8192, context=64
)


def peak_of_converting(form: str, quant: str | None, folder: Path) -> int:
    """Bytes of anonymous memory that converting a file takes in this process, once it is warm."""
    huggingface_write.SHARD_BYTES = 16 << 20

    def go(source: str) -> None:
        target = Target(form, folder / f"{source}.out", quant=quant)
        convert(open_checkpoint(folder / source), target, None, lambda done, total: None)

    go("small")
    gc.collect()
    with AnonymousPeak() as memory:
        go("big")
    return memory.peak


@pytest.mark.skipif(not tells_memory(), reason="this system does not tell what memory is anonymous")
@pytest.mark.parametrize(
    ("form", "quant"),
    [
        ("hf", None),
        ("llama2c-v0", None),
        ("llama2c-v2", None),
        ("gguf", None),
        ("gguf", "Q8_0"),
        ("gguf", "Q4_0"),
    ],
)
def test_memory(
    form: str, quant: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Config(
        dim=64, hidden=64, layers=1, heads=1, kv_heads=1, head_dim=64, vocab=64, context=8
    )
    for name, config in (("small", small), ("big", BIG)):
        source = RandomCheckpoint(config, torch.float32)
        convert(source, Target("llama2c-v1", tmp_path / name), None, lambda done, total: None)
    # a process of its own, in which memory that is freed is given back: then what is held is seen
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(1 << 16))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
        peak = alone.submit(peak_of_converting, form, quant, tmp_path).result()
    assert peak < 96 << 20 < BIG.parameters * 4 / 2

"""The measuring code on a tiny model: what it reports is consistent, whatever the speed."""

import sys

import pytest
import torch

from llama2gpu.config import Config
from llama2gpu.measure import decode, shapes
from llama2gpu.measure.memory import AnonymousPeak, peak_memory

TINY = Config(dim=64, hidden=128, layers=2, heads=4, kv_heads=2, head_dim=16, vocab=99, context=64)


def test_measure_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)
    monkeypatch.setattr(decode, "read_bandwidth", lambda blocks, repeats: 4e9)
    monkeypatch.setattr(decode, "matmul_peak", lambda device, dtype, repeats: 2e12)
    found = decode.measure_decode("tiny", device="cpu", prompt=8, tokens=4, repeats=3)
    assert len(found.rounds) == 3
    assert (found.dtype, found.backend) == ("bf16", "torch")
    layers = TINY.parameters - 2 * TINY.vocab * TINY.dim - TINY.dim * 5
    assert found.weight_bytes == 2 * (layers + TINY.vocab * TINY.dim)
    assert found.prompt_flops == 2 * layers
    middle = sorted(r.decode_rate for r in found.rounds)[1]
    assert found.read_share == pytest.approx(middle * found.weight_bytes / 4e9)
    assert found.machine["torch"] == torch.__version__


def test_the_read_peak_is_of_the_weights_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)
    monkeypatch.setattr(decode, "matmul_peak", lambda device, dtype, repeats: 2e12)

    def peak(blocks: list[torch.Tensor], repeats: int) -> float:
        seen.append(sum(block.nbytes for block in blocks))
        return 4e9

    monkeypatch.setattr(decode, "read_bandwidth", peak)
    found = decode.measure_decode("tiny", device="cpu", prompt=2, tokens=2, repeats=1)
    assert seen == [found.weight_bytes]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_anonymous_peak_sees_what_was_freed_again() -> None:
    with AnonymousPeak() as memory:
        block = torch.ones(64 << 20, dtype=torch.uint8)
        memory._look()
        del block
    assert 60 << 20 <= memory.peak <= 100 << 20


def test_peak_memory_is_at_least_what_is_held() -> None:
    held = torch.ones(32 << 20, dtype=torch.uint8)
    peak = peak_memory(torch.device("cpu"))
    assert peak is None or peak >= held.nbytes

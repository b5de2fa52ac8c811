"""What only a GPU can show: graphs, kernels that overlap, and long answers."""

from pathlib import Path
from typing import Any

import pytest
import torch

import llama2gpu
from llama2gpu.backends import choose_backend, probe
from llama2gpu.backends.kernel_backend import NO_GRAPH
from llama2gpu.backends.triton import NO_PDL
from llama2gpu.build import build_model
from llama2gpu.checkpoints import RandomCheckpoint
from llama2gpu.config import Config
from llama2gpu.engine import Engine
from llama2gpu.kernels.launch import INTERPRETED
from llama2gpu.open_quantizer import open_quantizer, read_spec
from llama2gpu.request import Request
from llama2gpu.sampling import SamplingParams
from tests.kernels.device import DEVICE
from tests.model.test_golden import GREEDY

pytestmark = pytest.mark.skipif(INTERPRETED or DEVICE is None, reason="no GPU")

CONFIG = Config(
    dim=1024, hidden=2816, layers=6, heads=16, kv_heads=4, head_dim=64, vocab=4099, context=1200
)
QUANTS = ("none", "int8", "int4")
SWITCHES = {"graph": {}, "no graph": {NO_GRAPH: "1"}, "no PDL": {NO_PDL: "1"}}
every_backend = pytest.mark.parametrize("backend", ["triton", "cupy"])


@pytest.fixture(autouse=True)
def _runs(backend: str) -> None:
    assert DEVICE is not None
    ok, detail = probe(backend, DEVICE)
    if not ok:
        pytest.skip(detail)


def engine_with(
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    switches: dict[str, str],
    quant: str,
    dtype: str = "fp32",
) -> Engine:
    for name in (NO_GRAPH, NO_PDL):
        monkeypatch.delenv(name, raising=False)
    for name, value in switches.items():
        monkeypatch.setenv(name, value)
    spec = read_spec(quant, None)
    checkpoint, server = (
        RandomCheckpoint(CONFIG, torch.float32),
        choose_backend(backend, str(DEVICE)),
    )
    quantizer = None if spec is None else open_quantizer(checkpoint, spec, server)
    return Engine(build_model(checkpoint, server, dtype, quantizer=quantizer))


def tokens_of(engine: Engine, count: int, sequences: int = 1, **params: Any) -> list[list[int]]:
    asked = [
        Request([i + 1, 5, 9], SamplingParams(max_tokens=count, seed=i, **params))
        for i in range(sequences)
    ]
    made = [engine.add(request) for request in asked]
    while engine.busy:
        engine.step()
    return [[token.id for token in s.output] for s in made]


@pytest.mark.parametrize("sequences", [1, 5])
@pytest.mark.parametrize("quant", QUANTS)
@every_backend
def test_a_thousand_tokens(
    backend: str, quant: str, sequences: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphs and overlap change nothing, greedily and drawn."""
    found = {
        name: [
            tokens_of(engine, 1000, sequences, temperature=0),
            tokens_of(engine, 200, sequences, temperature=1.0, top_p=0.9, repetition_penalty=1.1),
        ]
        for name, switches in SWITCHES.items()
        if (engine := engine_with(monkeypatch, backend, switches, quant))
    }
    assert found["graph"] == found["no graph"]
    assert found["graph"] == found["no PDL"]
    assert all(len(tokens) == 1000 for tokens in found["graph"][0])


@pytest.mark.parametrize("quant", QUANTS)
@every_backend
def test_runs_are_repeatable(backend: str, quant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A race between kernels that overlap would show as another answer now and then."""
    engine = engine_with(monkeypatch, backend, {}, quant, "bf16")
    first = tokens_of(engine, 300, 2, temperature=0)
    for _ in range(20):
        assert tokens_of(engine, 300, 2, temperature=0) == first


@every_backend
def test_a_cache_that_grows(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was captured on the old one is captured anew."""
    engine = engine_with(monkeypatch, backend, {}, "int4")
    for count, sequences in ((20, 1), (200, 2), (1, 5), (700, 3), (200, 2)):
        found = tokens_of(engine, count, sequences, temperature=0)
        fresh = engine_with(monkeypatch, backend, {}, "int4")
        assert found == tokens_of(fresh, count, sequences, temperature=0)


@every_backend
def test_golden_text(backend: str, stories: Path) -> None:
    model = llama2gpu.load(
        stories / "stories260K.bin", tokenizer=stories / "tok512.bin", backend=backend,
        device=str(DEVICE), dtype="fp32",
    )  # fmt: skip
    assert model.generate("", temperature=0, max_tokens=256).text == GREEDY

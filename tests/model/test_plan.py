"""Plans of memory: what is kept of each form, what is proposed, and loads that stop in time."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llama2gpu import plan_fit
from llama2gpu.api import load
from llama2gpu.backends import choose_backend
from llama2gpu.build import build_model
from llama2gpu.checkpoints import Checkpoint, RandomCheckpoint, open_checkpoint
from llama2gpu.checkpoints.save import save_huggingface
from llama2gpu.checkpoints.weights import load_weights
from llama2gpu.config import Config
from llama2gpu.engine import Engine
from llama2gpu.errors import RequestError
from llama2gpu.measure.memory import tells_memory
from llama2gpu.measure.shapes import SHAPES
from llama2gpu.measure.subject import weight_memory
from llama2gpu.open_quantizer import open_quantizer, read_spec
from llama2gpu.plan import Need, Plan, Planner, text_of
from llama2gpu.plan_fit import changes, check_memory
from llama2gpu.quant import Int4
from llama2gpu.quant.spec import parse_spec
from llama2gpu.request import Request
from llama2gpu.sampling import SamplingParams

CONFIG = Config(
    dim=256, hidden=688, layers=3, heads=8, kv_heads=2, head_dim=32, vocab=1000, context=640
)
BF16 = torch.bfloat16
#: Loads a folder and answers a prompt, and prints what that took beside what was planned.
MEASURE = """
import sys, torch
from pathlib import Path
from llama2gpu.build import build_model
from llama2gpu.backends import choose_backend
from llama2gpu.backends.cpu_rows import probe_rows
from llama2gpu.checkpoints import open_checkpoint
from llama2gpu.engine import Engine
from llama2gpu.measure.memory import AnonymousPeak
from llama2gpu.memory import give_back
from llama2gpu.open_quantizer import open_quantizer, read_spec
from llama2gpu.plan import Need, Planner
from llama2gpu.request import Request
from llama2gpu.sampling import SamplingParams

folder, quant = Path(sys.argv[1]), sys.argv[2]
server, spec = choose_backend("torch", "cpu"), read_spec(quant, None)
planned = Planner(open_checkpoint(folder), server, torch.bfloat16, spec).plan(Need(512)).total
probe_rows()
x = torch.ones(64, 64)
x @ x, x.bfloat16() @ x.bfloat16()
give_back()
with AnonymousPeak() as watch:
    checkpoint = open_checkpoint(folder)
    quantizer = None if spec is None else open_quantizer(checkpoint, spec, server)
    engine = Engine(build_model(checkpoint, server, "bf16", quantizer=quantizer))
    engine.add(Request([5] * 256, SamplingParams(temperature=0, max_tokens=256)))
    for _ in range(20):
        engine.step()
    print(planned / watch.look())
"""


def checkpoint(quant: str = "none", config: Config = CONFIG) -> Checkpoint:
    return RandomCheckpoint(config, BF16, quant=None if quant == "none" else parse_spec(quant))


NEED = Need(100)


def planned(source: Checkpoint, backend: str, quant: str = "none", need: Need = NEED) -> Plan:
    return Planner(source, choose_backend(backend, "cpu"), BF16, read_spec(quant, None)).plan(need)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("quant", ["none", "int8", "int8:64", "int4:32", "int4:32+zeros+head"])
@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_weights_are_what_a_load_keeps(backend: str, quant: str, tied: bool) -> None:
    source = checkpoint(config=replace(CONFIG, tied=tied))
    server, spec = choose_backend(backend, "cpu"), read_spec(quant, None)
    quantizer = None if spec is None else open_quantizer(source, spec, server)
    model = build_model(source, server, "bf16", quantizer=quantizer)
    found = planned(source, backend, quant)
    kept = weight_memory(model)
    if tied and (backend == "numpy" or quant.endswith("head")):  # they are not the same memory
        kept += model.weights.embed.nbytes
    assert sum(found.weights.values()) - found.weights["fp32"] == pytest.approx(kept, rel=0.01)
    norms = 4 * (2 * CONFIG.layers + 1) * CONFIG.dim
    assert found.weights["fp32"] == norms + 4 * 2048 * CONFIG.head_dim


def test_what_stays_dense_keeps_no_memory_of_what_does_not() -> None:
    source = checkpoint(config=replace(CONFIG, hidden=344))  # no multiple of 32
    quantizer = open_quantizer(source, parse_spec("int4:32"), choose_backend("torch", "cpu"))
    kept = load_weights(source, BF16, lambda weight, op: weight, quantizer=quantizer)
    for layer in kept.layers:
        assert isinstance(layer.w_qkv, Int4)
        assert layer.w_2.data.untyped_storage().nbytes() == layer.w_2.nbytes


@pytest.mark.parametrize("quant", ["int8", "int4:32"])
def test_what_is_stored_quantized_stays_so(quant: str, tmp_path: Path) -> None:
    save_huggingface(checkpoint(quant), tmp_path / "folder")
    source = open_checkpoint(tmp_path / "folder")
    model = build_model(source, choose_backend("torch", "cpu"), "bf16")
    found = planned(source, "torch")
    assert sum(found.weights.values()) - found.weights["fp32"] == weight_memory(model)
    assert set(found.weights) == {quant[:4], "bf16", "fp32"}


@pytest.mark.parametrize("kv_dtype", [None, torch.int8])
@pytest.mark.parametrize("batch", [1, 3])
def test_cache_is_what_sequences_hold(kv_dtype: torch.dtype | None, batch: int) -> None:
    source = checkpoint()
    model = build_model(source, choose_backend("torch", "cpu"), "bf16")
    engine = Engine(model, kv_dtype=kv_dtype)
    for _ in range(batch):
        engine.add(Request([1] * 50, SamplingParams(max_tokens=51)))
    engine.step()
    assert planned(source, "torch", need=Need(100, batch, kv_dtype)).cache == engine.cache.nbytes


def test_one_flag_is_proposed_where_it_is_enough() -> None:
    source = checkpoint()
    planner = Planner(source, choose_backend("torch", "cpu"), BF16)
    need = Need(1024, batch=20)
    whole, cached = planner.plan(need), planner.plan(need._replace(kv_dtype=torch.int8))
    found = {change.flags: change.total for change in changes(planner, need, cached.total)}
    assert found["--kv-dtype int8"] == cached.total <= cached.total < whole.total
    assert found["--ctx 512"] > 0
    assert any(flags.startswith("--batch ") for flags in found)
    assert all(total <= cached.total for total in found.values())
    batch = int(next(flags for flags in found if flags.startswith("--batch ")).split()[1])
    assert planner.plan(need._replace(batch=batch + 1)).total > cached.total


def test_many_sequences_are_not_tried_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    planner = Planner(checkpoint(), choose_backend("torch", "cpu"), BF16)
    need = Need(1024, batch=1 << 16)
    free = planner.plan(need._replace(batch=777)).total
    tried: list[Need] = []
    plan = planner.plan

    def counted(need: Need) -> Plan:
        tried.append(need)
        return plan(need)

    monkeypatch.setattr(planner, "plan", counted)
    assert "--batch 777" in [change.flags for change in changes(planner, need, free)]
    assert len(tried) < 50


def test_several_are_proposed_where_one_is_not() -> None:
    source = checkpoint(config=replace(CONFIG, layers=40, kv_heads=8))
    planner = Planner(source, choose_backend("torch", "cpu"), BF16)
    need = Need(512)
    both = planner.with_spec(parse_spec("int4")).plan(need._replace(kv_dtype=torch.int8)).total
    flags = [change.flags for change in changes(planner, need, both)]
    assert "--quant int4 --kv-dtype int8" in flags
    assert all("--quant" in one and "--kv-dtype int8" in one for one in flags)
    less = [change.flags for change in changes(planner, Need(4096, 4), both)]
    assert less
    assert all("--ctx" in one and "--batch 1" in one for one in less)
    assert changes(planner, need, 1000) == []


def test_a_load_that_can_not_fit_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_fit, "free_memory", lambda device: 12_000_000)
    with pytest.raises(RequestError) as raised:
        load(device="cpu", context=384)
    (line,) = str(raised.value).splitlines()
    assert line.startswith("stories takes ")
    assert "but cpu has 12 MB free: " in line
    assert "--quant int4" in line or "take a smaller model" in line


def test_what_fits_or_is_not_known_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    source, server = checkpoint(), choose_backend("torch", "cpu")
    total = Planner(source, server, BF16).plan(Need(100)).total
    for free in (total, None):
        monkeypatch.setattr(plan_fit, "free_memory", lambda device, free=free: free)
        check_memory(source, server, BF16, None, Need(100))
    monkeypatch.setattr(plan_fit, "free_memory", lambda device: total - 1)
    with pytest.raises(RequestError, match="takes"):
        check_memory(source, server, BF16, None, Need(100))


def test_a_load_goes_on_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_fit, "free_memory", lambda device: 1000)
    monkeypatch.setenv(plan_fit.NO_PLAN, "1")
    check_memory(checkpoint(), choose_backend("torch", "cpu"), BF16, None, Need(100))


def test_nothing_is_read_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    class Untouched(RandomCheckpoint):
        def weight(self, name: str) -> object:  # type: ignore[override]
            raise AssertionError(name)

    source = Untouched(CONFIG, BF16, quant=parse_spec("int4"))
    monkeypatch.setattr(plan_fit, "free_memory", lambda device: 1 << 40)
    check_memory(source, choose_backend("torch", "cpu"), BF16, None, Need(100))


@pytest.mark.skipif(not tells_memory(), reason="the system does not tell anonymous memory")
@pytest.mark.parametrize(
    ("stored", "quant"), [("none", "none"), ("int8", "none"), ("int4", "none"), ("none", "int8")]
)
def test_agrees_with_measured_memory(stored: str, quant: str, tmp_path: Path) -> None:
    """Half of the layers of the 1.1B shape, in a process of its own."""
    config = replace(SHAPES["llama-1.1b"], layers=11)
    save_huggingface(checkpoint(stored, config), tmp_path / "folder")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "folder"), quant],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert float(done.stdout) == pytest.approx(1, abs=0.05)


def test_sizes_for_people() -> None:
    assert [text_of(n) for n in (999, 12_345, 13_500_000, 4_260_000_000)] == [
        "999 bytes", "12.3 kB", "13.5 MB", "4.26 GB",
    ]  # fmt: skip

"""What tuning keeps, on a bench that measures nothing; and the file that it keeps it in."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llama2gpu.backends import triton as backend_module
from llama2gpu.backends.triton import NO_TUNED, TritonBackend
from llama2gpu.config import Config
from llama2gpu.errors import BackendError
from llama2gpu.kernels import tuned as files
from llama2gpu.kernels import user_cache
from llama2gpu.kernels.arch import ARCHS
from llama2gpu.kernels.launch import INTERPRETED, Launch, recording
from llama2gpu.kernels.tiling import Tile, Use, shipped_tile
from llama2gpu.kernels.tuned import (
    Entry,
    Tuned,
    load_tuned,
    read_entries,
    tuned_path,
    write_entries,
)
from llama2gpu.measure.cuda_bench import count_sets
from llama2gpu.measure.kernel_work import meta_arguments
from llama2gpu.measure.tune import Found, Problem, keep, merged, problems, tune
from tests.measure.fake_bench import FakeBench, tile_of, write

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter has rows of its own")

ARCH = ARCHS["sm_90"]
SMALL = Config(
    dim=256, hidden=512, layers=1, heads=4, kv_heads=2, head_dim=64, vocab=96, context=128
)
GOOD, FAST, SLOW = Tile(4, 256, 1), Tile(16, 256, 1), Tile(32, 128, 1)


def one(op: str = "gate_up", weight: str = "dense", tokens: int = 1) -> Problem:
    return next(p for p in problems(SMALL, [weight], [tokens], ARCH) if p.work.op == op)


def found_by(bench: FakeBench, problem: Problem | None = None) -> Found:
    (found,) = tune([problem or one()], ARCH, bench)
    return found


def test_problems_are_the_matrices_of_a_model() -> None:
    todo = problems(SMALL, ["int4", "dense"], [1, 2, 9], ARCH)
    assert [(p.work.op, p.work.weight, p.use.tokens, p.work.n, p.work.k) for p in todo][:6] == [
        ("qkv", "int4", 1, 512, 256), ("qkv", "int4", 16, 512, 256), ("qkv", "dense", 1, 512, 256),
        ("qkv", "dense", 16, 512, 256), ("project_add", "int4", 1, 256, 256),
        ("project_add", "int4", 16, 256, 256),
    ]  # fmt: skip
    assert len({p.use for p in todo}) == len(todo) == 5 * 2 * 2
    with pytest.raises(BackendError, match="choose from 1 to 64"):
        problems(SMALL, ["dense"], [1, 65], ARCH)


def test_the_fastest_wins() -> None:
    bench = FakeBench(times={GOOD: [80.0], FAST: [70.0], SLOW: [120.0]})
    found = found_by(bench)
    assert (found.tile, found.shipped_us, found.best_us) == (FAST, 100.0, 70.0)
    assert found.gain == pytest.approx(0.3)
    assert (found.kernel, found.failed, found.wrong) == ("_gate_up_kernel", 0, 0)
    assert found.tried == len(set(bench.compiled)) > 10
    assert shipped_tile(found.use) not in bench.compiled
    json.dumps(found.fields())


def test_sets_differ_in_their_weights_alone() -> None:
    bench = FakeBench()
    found_by(bench)
    first, second = (launches[-1].arguments for launches in bench.rounds[0])
    assert first["p_x"] is second["p_x"]
    assert not torch.equal(first["p_w"], second["p_w"])
    assert (first["p_w"] == 0).float().mean() < 0.01
    assert first["p_w"].float().std() == pytest.approx(256**-0.5, rel=0.1)


@pytest.mark.parametrize("wrong", [0.9, float("nan"), float("inf")])
def test_other_results_are_not_timed(wrong: float) -> None:
    bench = FakeBench(times={GOOD: [80.0], FAST: [70.0]}, results={FAST: wrong})
    found = found_by(bench)
    assert (found.tile, found.wrong, found.failed) == (GOOD, 1, 0)
    assert FAST not in bench.timed


def test_what_writes_no_keys_is_wrong() -> None:
    tile = Tile(16, 32, 1)

    def run(launches: Sequence[Launch]) -> None:
        write(launches, {})
        for launch in launches:
            if tile_of(launch) == tile:
                launch.arguments["p_k_cache"].zero_()

    bench = FakeBench(run=run)
    found = found_by(bench, one("qkv", "int4"))
    assert tile in bench.compiled
    assert (found.wrong, found.tile) == (1, None)


def test_what_does_not_run_is_counted() -> None:
    bench = FakeBench(times={GOOD: [80.0], FAST: [70.0]}, failing=[FAST, SLOW])
    found = found_by(bench)
    assert (found.tile, found.wrong, found.failed) == (GOOD, 0, 2)


def test_a_lost_device_ends_it() -> None:
    lost: list[bool] = []

    def run(launches: Sequence[Launch]) -> None:
        if lost or tile_of(launches[0]) == FAST:
            lost.append(True)
            raise RuntimeError("an illegal memory access was encountered")
        write(launches, {})

    with pytest.raises(BackendError, match=r"gate_up \(dense, 1 tokens\) stopped the device"):
        found_by(FakeBench(run=run))


def test_a_kernel_that_does_not_run_at_all_ends_it() -> None:
    bench = FakeBench(failing=[shipped_tile(one().use)])
    with pytest.raises(BackendError, match="does not run with its own tile: out of resource"):
        found_by(bench)


@pytest.mark.parametrize(
    ("shipped", "fastest"),
    [([100.0], [98.5]), ([100.0, 90.0], [70.0, 89.0]), ([100.0], [70.0, 99.0])],
    ids=["tiny", "shipped was slow by chance", "tile was fast by chance"],
)
def test_what_gains_too_little_is_left(shipped: list[float], fastest: list[float]) -> None:
    own = shipped_tile(one().use)
    found = found_by(FakeBench(times={own: shipped, FAST: fastest}))
    assert (found.tile, found.gain) == (None, 0.0)
    assert merged([], found) == []


def test_the_head_must_draw_with_the_tile_too() -> None:
    problem = one("logits")
    tile = Tile(4, 256, 1)

    def run(launches: Sequence[Launch]) -> None:
        if any(x.name == "_head_kernel" and tile_of(x) == tile for x in launches):
            raise RuntimeError("out of resource: shared memory")
        write(launches, {})

    found = found_by(FakeBench(run=run, times={tile: [1.0]}), problem)
    assert (found.failed, found.tile, found.kernel) == (1, None, "_linear_kernel")


def test_kept_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "card.json"
    bench = FakeBench(times={FAST: [70.126]})
    todo = [one(), one("project_add", "int4")]
    found = list(keep(tune(todo, ARCH, bench), path, "Card", ARCH))
    assert [one.tile for one in found] == [FAST, None]
    (entry,) = read_entries(path, "sm_90")
    assert entry[:4] == (todo[0].use, FAST, 100.0, 70.13)
    assert [p.name for p in path.parent.iterdir()] == ["card.json"]
    content = json.loads(path.read_text())
    assert (content["device"], content["arch"]) == ("Card", "sm_90")
    assert set(content["versions"]) == {"triton", "torch", "cuda"}

    again = FakeBench(times={GOOD: [60.0]})  # what is found now replaces what was
    list(keep(tune(todo[:1], ARCH, again), path, "Card", ARCH))
    assert [e.tile for e in read_entries(path, "sm_90")] == [GOOD]
    list(keep(tune(todo[:1], ARCH, FakeBench()), path, "Card", ARCH))
    assert read_entries(path, "sm_90") == []


def test_an_interruption_keeps_what_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    todo, stop = [one(), one("qkv")], one("qkv").use.rows

    def run(launches: Sequence[Launch]) -> None:
        if launches[0].arguments["N"] == stop:
            raise KeyboardInterrupt
        write(launches, {})

    bench = FakeBench(run=run, times={FAST: [70.0]})
    with pytest.raises(KeyboardInterrupt):
        list(keep(tune(todo, ARCH, bench), path, "Card", ARCH))
    assert [e.use for e in read_entries(path, "sm_90")] == [todo[0].use]
    assert len(list(tmp_path.iterdir())) == 1


def test_an_interrupted_write_leaves_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "card.json"
    write_entries(path, "Card", "sm_90", [])
    before = path.read_text()

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_entries(path, "Card", "sm_90", [entry()])
    assert path.read_text() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a card, which is not there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    user_cache.warn_once.cache_clear()
    return tuned_path("NVIDIA H200 (141 GB)")


def entry(**changes: Any) -> Entry:
    use = Use("sm_90", 4, 128, 4096, 4096, 1)
    return Entry(use, Tile(8, 256, 2), 10.0, 8.0, "2026-11-20")._replace(**changes)


def load() -> Tuned:
    return load_tuned("NVIDIA H200 (141 GB)", ARCH)


def test_round_trip(cached: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert cached.name.startswith("nvidia-h200-141-gb-triton-3.")
    assert load() == Tuned()
    other = entry(use=Use("sm_90", 16, 64, 64, 64, 64), tile=Tile(32, 64, 4, 3), date="2026-11-21")
    write_entries(cached, "NVIDIA H200 (141 GB)", "sm_90", [entry(), other])
    assert load().tiles == {entry().use: entry().tile, other.use: other.tile}
    assert load().origin == "tuned 2026-11-21 (2)"
    assert not caplog.records


def damage(content: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    first = content["entries"][0]
    (first if name in first else content)[name] = value
    return content


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("format", 2, "another format"),
        ("kernels", "0123456789abcdef", "other kernels"),
        ("arch", "sm_80", "not of sm_90"),
        ("entries", {}, "not of sm_90"),
        ("entries", [3], "no object"),
        ("block_n", 12, "powers of two"),
        ("block", 8192, "a row has 512"),
        ("block", 2**40, "no whole number"),
        ("num_warps", 0, "no whole number"),
        ("num_warps", True, "no whole number"),
        ("rows", "4096", "no whole number"),
        ("columns", None, "no whole number"),
        ("bits", 5, "no kernel"),
        ("tokens", 8, "no kernel"),
        ("tuned_us", "fast", "its times"),
        ("tuned_us", 10**400, "its times"),
        ("date", "today", "its date"),
    ],
)
def test_damaged_file(
    name: str, value: Any, reason: str, cached: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_entries(cached, "Card", "sm_90", [entry()])
    cached.write_text(json.dumps(damage(json.loads(cached.read_text()), name, value)))
    assert load() == load() == Tuned()
    (record,) = caplog.records
    line = record.getMessage()
    assert (record.levelno, "\n" in line) == (logging.WARNING, False)
    assert str(cached) in line
    assert reason in line
    assert "delete it, or run `llama2gpu kernels tune` again" in line


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b" " * (files.LIMIT + 1)]
)
def test_no_file_of_ours(data: bytes, cached: Path, caplog: pytest.LogCaptureFixture) -> None:
    cached.parent.mkdir(parents=True)
    cached.write_bytes(data)
    assert load() == Tuned()
    assert len(caplog.records) == 1


def test_a_damaged_file_is_written_anew(cached: Path) -> None:
    cached.parent.mkdir(parents=True)
    cached.write_text("{")
    list(keep(tune([one()], ARCH, FakeBench(times={FAST: [70.0]})), cached, "Card", ARCH))
    assert load().tiles == {one().use: FAST}


def test_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert load() == Tuned()


def test_the_backend_reads_the_file_once(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(major=9, minor=0, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200 (141 GB)")
    write_entries(cached, "NVIDIA H200 (141 GB)", "sm_90", [entry()])
    cuda = torch.device("cuda", 0)
    backend = TritonBackend(cuda)
    assert backend.tuned.tiles == {entry().use: entry().tile}
    assert backend.routes()["qkv"].why.endswith("tiles: tuned 2026-11-20 (1)")
    monkeypatch.setenv(NO_TUNED, "1")
    assert TritonBackend(cuda).tuned == Tuned()
    assert TritonBackend(cuda).routes()["qkv"].why.endswith("tiles: shipped")


def test_without_a_device_no_file_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_module, "load_tuned", None)
    for place in ("cpu", "meta"):
        assert TritonBackend(torch.device(place)).tuned == Tuned()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_backend_launches_the_tile(dtype: torch.dtype) -> None:
    problem = one("project_add")
    backend = TritonBackend(torch.device("meta"), ARCH, tuned=Tuned({problem.use: FAST}))
    arguments = meta_arguments(problem.work, backend)
    arguments |= {name: arguments[name].to(dtype) for name in ("a", "x")}
    with recording() as (launches):
        backend.project_add(**arguments)
    wanted = FAST if dtype == torch.bfloat16 else shipped_tile(problem.use)
    assert [tile_of(launch) for launch in launches] == [wanted]


@pytest.mark.parametrize(
    ("nbytes", "count"), [(8 << 20, 19), (262 << 20, 2), (10, 32), (26 << 20, 6)]
)
def test_sets_that_no_cache_holds(nbytes: int, count: int) -> None:
    assert count_sets(nbytes, 50 << 20) == count

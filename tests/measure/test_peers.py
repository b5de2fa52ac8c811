"""Other software beside ours: who is missing and why, in which order, and what is right."""

import inspect
import itertools
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from llama2gpu.backends.base import Prepared
from llama2gpu.measure import peers
from llama2gpu.measure.kernel_inputs import KernelInputs
from llama2gpu.measure.kernel_timer import Call, Times
from llama2gpu.measure.kernel_work import Work, works
from llama2gpu.measure.peer_kernels import kernel_works, measure_kernels
from llama2gpu.measure.peer_ways import WAYS
from llama2gpu.measure.peers import LIGER, PEERS, Compared, Peer, Ratio, numbers, ratio
from tests.measure import fake_peers
from tests.measure.fake_kernels import CPU, TINY, FakeTimer, PlainBackend

BF16 = torch.bfloat16
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages made up, and peers that need no GPU."""
    fake_peers.install(monkeypatch)
    for name in ("gemlite", "liger-kernel"):
        monkeypatch.setitem(peers.PEERS, name, replace(PEERS[name], gpu=False))
    real = metadata.version
    versions = {"gemlite": "0.6.0.post2", "liger-kernel": "0.8.5"}
    monkeypatch.setattr(metadata, "version", lambda name: versions.get(name) or real(name))


def test_the_extra_names_the_same_packages_and_versions() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = extras["optional-dependencies"]["peers"]
    asked = {x.package: x.least for x in PEERS.values() if x.package}
    found = [x.partition(";")[0].strip().split(">=") for x in wanted]
    assert {name: numbers(version) for name, version in found} == asked


@pytest.mark.parametrize(
    ("version", "found"), [("5.8.0rc1", (5, 8, 0)), ("0.6.0.post2", (0, 6, 0)), ("git", ())]
)
def test_numbers_of_a_version(version: str, found: tuple[int, ...]) -> None:
    assert numbers(version) == found


@pytest.mark.parametrize("name", ["gemlite", "liger-kernel"])
def test_what_needs_a_gpu(name: str) -> None:
    assert PEERS[name].absent(CPU) == "needs a CUDA GPU"


def test_who_is_not_installed_is_named_with_what_mends_it() -> None:
    peer = Peer("other", "kernels", "no-such-package", (1,), "no_such_package")
    mend = "no-such-package is not installed: pip install 'llama2gpu[peers]'"
    assert peer.absent(CPU) == mend
    assert replace(peer, gpu=True).absent(torch.device("cuda")) == mend


def test_who_is_too_old_or_fails_at_import(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken_peer.py").write_text("raise RuntimeError('no\\ndriver')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(metadata, "version", lambda name: "1.2.3")
    peer = Peer("other", "kernels", "broken", (1, 2), "broken_peer")
    assert peer.absent(CPU) == "broken 1.2.3 can't be imported: RuntimeError: no driver"
    told = replace(peer, least=(1, 3)).absent(CPU)
    assert told == "broken 1.2.3 is too old: pip install 'llama2gpu[peers]'"
    assert replace(peer, module="json").absent(CPU) == ""


def test_a_program_is_looked_for_on_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no llama-bench on PATH" in PEERS["llama.cpp"].absent(CPU)
    peer = replace(PEERS["llama.cpp"], package="")
    fake_peers.write_program(tmp_path)
    assert peer.absent(CPU) == ""
    assert (peer.path, peer.version) == (tmp_path / "llama-bench", "7 (abc)")


def test_present_sorts_by_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    found, told = peers.present(list(PEERS), "kernels", CPU)
    assert [peer.name for peer in found] == ["tinygemm"]
    assert told.absent == dict.fromkeys(("gemlite", "liger-kernel"), "needs a CUDA GPU")


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_all_orders_are_as_frequent_backwards(count: int) -> None:
    rounds = [list(peers.turns(range(count), n)) for n in range(2 * count)]
    assert all(sorted(one) == list(range(count)) for one in rounds)
    for a, b in itertools.permutations(range(count), 2):
        assert sum(one.index(a) < one.index(b) for one in rounds) == count
    assert {one[0] for one in rounds} == set(range(count))


def test_ratio_is_of_each_round() -> None:
    assert ratio([6.0], [2.0]) == Ratio(3, 3, 3)
    assert ratio([2.0, 8.0, 9.0], [2.0, 4.0, 3.0]) == Ratio(2, 1.5, 2.5)


def test_compared_are_joined() -> None:
    first = Compared([], {"a": "x"}, {})
    first.add(Compared([], {"b": "y"}, {"c": "z"}))
    assert (first.absent, first.wrong) == ({"a": "x", "b": "y"}, {"c": "z"})


def kernels(
    *names: str, backend: PlainBackend | None = None, times: Sequence[float] = (100.0,)
) -> Compared:
    todo = kernel_works(TINY, names, [1, 3], 96)
    server = backend or PlainBackend(CPU)
    return measure_kernels("tiny", todo, server, BF16, names, FakeTimer(*times), 2)


def pairs(found: Compared) -> dict[tuple[str, int, int | None], list[str]]:
    made: dict[tuple[str, int, int | None], list[str]] = {}
    for row in found.rows:
        made.setdefault((row.bench, row.tokens, row.k), []).append(row.backend)
    return made


def test_works_are_those_of_the_peers() -> None:
    found = {(work.op, work.weight) for work in kernel_works(TINY, list(PEERS), [1], 96)}
    int4 = {("linear", "int4"), ("project_add", "int4"), ("gate_up", "int4")}
    assert found == int4 | {("rms_norm", "dense"), ("rope", "dense"), ("silu_mul", "dense")}
    assert kernel_works(TINY, ["transformers"], [1], 96) == []


def test_tinygemm_on_a_cpu() -> None:
    found = kernels("tinygemm", "gemlite", times=(10.0, 40.0, 30.0, 10.0, 7.0))
    assert found.absent == {"gemlite": "needs a CUDA GPU"}
    assert found.wrong == {}
    both = ["llama2gpu plain", "tinygemm"]
    uses = [("linear", 64), ("project_add, attention", 64), ("project_add, feed-forward", 96),
            ("gate_up", 64)]  # fmt: skip
    assert pairs(found) == {(use, m, k): both for use, k in uses for m in (1, 3)}
    ours, theirs = found.rows[:2]
    # ours and then theirs in the first round, and the other way around in the second
    assert (ours.rounds, theirs.rounds) == ([{"us": 10}, {"us": 10}], [{"us": 40}, {"us": 30}])
    assert (ours.ratios, theirs.ratios) == ({}, {"us": Ratio(3.5, 3.25, 3.75)})
    assert (ours.n, ours.k, ours.quant, ours.dtype, ours.depth) == (96, 64, "int4", "bf16", 96)


@pytest.mark.usefixtures("packages")
def test_what_runs_on_a_gpu_with_packages_made_up() -> None:
    found = kernels("gemlite", "liger-kernel")
    assert (found.absent, found.wrong) == ({}, {})
    of = dict.fromkeys(("linear", "gate_up"), "gemlite")
    of |= dict.fromkeys(("project_add, attention", "project_add, feed-forward"), "gemlite")
    of |= dict.fromkeys(("rms_norm", "rope", "silu_mul"), "liger-kernel")
    assert {row[0]: names for row, names in pairs(found).items()} == {
        op: ["llama2gpu plain", peer] for op, peer in of.items()
    }
    assert found.rows[0].machine["gemlite"] == "0.6.0.post2"
    assert found.rows[0].machine["liger-kernel"] == "0.8.5"


@pytest.mark.usefixtures("packages")
def test_a_wrong_peer_is_named_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_peers.A16W4_HQQ_INT, "offset", 1.0)
    found = kernels("tinygemm", "gemlite")
    assert "its error is" in found.wrong["gemlite linear of 1 tokens"]
    assert len(found.wrong) == 8
    assert {row.backend for row in found.rows} == {"llama2gpu plain", "tinygemm"}


@pytest.mark.usefixtures("packages")
def test_a_peer_that_raises_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*words: object) -> None:
        raise ValueError("no\nkernel")

    monkeypatch.setattr(import_module(LIGER), "liger_swiglu", fail)
    found = kernels("liger-kernel")
    assert found.wrong["liger-kernel silu_mul of 3 tokens"] == "ValueError: no kernel"
    assert {row.bench for row in found.rows} == {"rms_norm", "rope"}


def test_launches_are_in_both_times_or_in_none() -> None:
    class OursInGraphs(FakeTimer):
        def microseconds(self, calls: Sequence[Call]) -> Times:
            ours = getattr(calls[0], "keywords", {})
            return super().microseconds(calls)._replace(graph="weight" in ours)

    todo = kernel_works(TINY, ["tinygemm"], [1], 96)
    found = measure_kernels("tiny", todo, PlainBackend(CPU), BF16, ["tinygemm"], OursInGraphs(), 2)
    assert {row.backend for row in found.rows} == {"llama2gpu plain"}
    assert found.absent["tinygemm linear"] == "only one of it and ours fits a CUDA graph"


def test_ours_that_is_wrong_is_not_timed() -> None:
    class Wrong(PlainBackend):
        def linear(self, x: torch.Tensor, weight: Prepared) -> torch.Tensor:
            return 1.1 * super().linear(x, weight)

    found = kernels("tinygemm", backend=Wrong(CPU))
    assert set(found.wrong) >= {f"llama2gpu plain linear of {m} tokens" for m in (1, 3)}
    assert "linear" not in {row.bench for row in found.rows}


def test_what_fails_as_it_is_timed_stops_nothing_else() -> None:
    class Failing(FakeTimer):
        def microseconds(self, calls: Sequence[Call]) -> Times:
            if len(self.calls) == 1:
                self.calls.append(calls)
                raise RuntimeError("out of\nmemory")
            return super().microseconds(calls)

    todo = kernel_works(TINY, ["tinygemm"], [1], 96)
    found = measure_kernels("tiny", todo, PlainBackend(CPU), BF16, ["tinygemm"], Failing(), 1)
    assert found.wrong == {"timing linear of 1 tokens": "RuntimeError: out of memory"}
    assert len(found.rows) == 2 * (len(todo) - 1)


def test_ours_that_raises_is_named() -> None:
    class Raises(PlainBackend):
        def linear(self, x: torch.Tensor, weight: Prepared) -> torch.Tensor:
            raise RuntimeError("no such kernel")

    found = kernels("tinygemm", backend=Raises(CPU))
    told = "RuntimeError: no such kernel"
    assert found.wrong["llama2gpu plain linear of 1 tokens"] == told


def test_what_a_peer_has_no_kernel_for() -> None:
    odd = replace(TINY, hidden=104)  # is no multiple of 16
    todo = kernel_works(odd, ["tinygemm"], [1], 96)
    found = measure_kernels("odd", todo, PlainBackend(CPU), BF16, ["tinygemm"], FakeTimer(), 1)
    assert found.absent == {"tinygemm linear": "has no kernel for 104 x 64 here"}
    assert "linear" not in {row.bench for row in found.rows}
    todo = kernel_works(TINY, ["tinygemm"], [1], 96)
    wide = measure_kernels(
        "tiny", todo, PlainBackend(CPU), torch.float32, ["tinygemm"], FakeTimer(), 1
    )
    assert set(wide.absent.values()) == {"takes bfloat16 alone: say --dtype bf16"}
    assert wide.rows == []


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("m", [1, 3, 70])
def test_liger_ropes_every_set_in_place(m: int) -> None:
    work: Work = next(works(TINY, ["rope"], ["dense"], [m], 96))
    arguments = KernelInputs(work, torch.float32, CPU, 0).arguments()
    way = WAYS["liger-kernel"]["rope"](work, arguments, None)
    wanted = PlainBackend(CPU).rope(**arguments)
    assert torch.allclose(way.result(), wanted, atol=1e-6)
    assert torch.allclose(way.result(), wanted, atol=1e-6)  # it turned a copy
    way.call()
    assert not torch.allclose(way.result(), wanted, atol=1e-2)


@pytest.mark.parametrize("name", ["liger_rms_norm", "liger_swiglu", "liger_rope"])
def test_signatures_are_those_of_liger(name: str) -> None:
    real = pytest.importorskip(LIGER, reason="liger-kernel is not installed")
    wanted = inspect.signature(getattr(fake_peers, name)).parameters
    assert _plain(inspect.signature(getattr(real, name)).parameters) == _plain(wanted)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="gemlite's import asks a GPU")
def test_signatures_are_those_of_gemlite() -> None:
    real = pytest.importorskip("gemlite.helper", reason="gemlite is not installed").A16W4_HQQ_INT
    for method in ("__init__", "from_weights"):
        found, wanted = (
            inspect.signature(getattr(kind, method)).parameters
            for kind in (real, fake_peers.A16W4_HQQ_INT)
        )
        assert _plain(found) == _plain(wanted)


def _plain(parameters: Any) -> list[tuple[str, object]]:
    return [(name, one.default) for name, one in parameters.items()]

"""The bench of kernels with a timer that is made up: checks, figures, sets, baselines."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llama2gpu.backends.base import Backend, Batch, LayerCache, Norm, Prepared
from llama2gpu.backends.matrix import Matrix
from llama2gpu.backends.numpy import NumpyBackend
from llama2gpu.config import Config
from llama2gpu.measure.baselines import baselines, products
from llama2gpu.measure.kernel_bench import OPS, KernelBench, Row, beside, figures
from llama2gpu.measure.kernel_inputs import KernelInputs, case_of, least, random_matrices
from llama2gpu.measure.kernel_timer import (
    LEAST_CALLS,
    MOST,
    SWEEP,
    UNKNOWN_CACHE,
    Call,
    CallTimer,
    Times,
    cpu_cache,
    quartiles,
    read_size,
    sets_of,
)
from llama2gpu.measure.kernel_work import WEIGHTS, Work, works
from llama2gpu.measure.roofs import Roofs
from llama2gpu.ops.cost import Cost
from llama2gpu.ops.tolerance import bound, error
from llama2gpu.quant import Int4, Int8, Weight
from tests.measure.fake_kernels import CPU, ROOFS, TINY, FakeTimer, PlainBackend, WrongBackend

BF16 = torch.bfloat16


def work_of(op: str, weight: str = "dense", m: int = 3, config: Config = TINY) -> Work:
    return next(works(config, [op], [weight], [m], 96))


def measure(
    todo: Sequence[Work], backend: Backend, timer: FakeTimer | None = None, dtype: str = "bf16"
) -> list[Row]:
    kind = {"bf16": BF16, "fp32": torch.float32}[dtype]
    bench = KernelBench([(backend, dtype, kind)], timer or FakeTimer(), lambda: ROOFS)
    return bench.rows(todo)


def every_work(m: int) -> list[Work]:
    found = works(TINY, OPS, WEIGHTS, [m], 96)
    return [work for work in found if "penalized" not in work.case]


@pytest.mark.parametrize("m", [1, 3, 70])
def test_every_op_of_the_torch_backend_is_right(m: int) -> None:
    rows = measure(every_work(m), PlainBackend(CPU))
    assert {row.op for row in rows} == {
        op for op in OPS if m < 64 or op not in ("logits", "sample")
    }
    assert [(row.op, row.weight, row.problem) for row in rows if row.problem] == []
    assert all(row.checked and row.figures for row in rows)


def test_every_op_of_the_reference_is_right() -> None:
    rows = measure(every_work(3), NumpyBackend(CPU), dtype="fp32")
    assert [row.problem for row in rows if row.problem] == []


@pytest.mark.parametrize(
    ("op", "told"),
    [
        ("logits", "its error is 0.1"),
        ("silu_mul", "a result is not finite"),
        ("rope", "RuntimeError: no such kernel"),
        ("write_kv", "its error is"),
    ],
)
def test_a_wrong_op_has_no_figures(op: str, told: str) -> None:
    timer = FakeTimer()
    (row,) = measure([work_of(op)], WrongBackend(CPU), timer)
    assert told in row.problem
    assert not row.checked
    assert timer.calls == []
    fields = row.fields()
    assert fields["checked"] is False
    assert {fields[name] for name in ("us", "gbps", "tflops", "share", "ratio")} == {None}


def test_one_wrong_set_is_seen() -> None:
    """The last of the matrices that take turns is checked too."""

    class LastIsWrong(PlainBackend):
        def prepare(self, weight: Weight, op: str) -> Weight | Matrix:
            self.last = super().prepare(weight, op)
            return self.last

        def linear(self, x: torch.Tensor, weight: Prepared) -> torch.Tensor:
            y = super().linear(x, weight)
            return -y if weight is self.last else y

    timer = FakeTimer(cache=1 << 14)
    (row,) = measure([work_of("linear")], LastIsWrong(CPU), timer)
    assert "its error is" in row.problem


def test_what_is_written_elsewhere_and_another_type_are_wrong() -> None:
    class Stray(PlainBackend):
        def write_kv(self, k: Tensor, v: Tensor, batch: Batch, cache: LayerCache) -> None:
            super().write_kv(k, v, batch, cache)
            cache.v[batch.block_table[0, 0].long(), :, 0] = 0

        def logits(self, x: Tensor, norm: Norm, weight: Prepared) -> Tensor:
            return super().logits(x, norm, weight).bfloat16()

    rows = measure([work_of(op) for op in ("qkv", "write_kv", "logits")], Stray(CPU))
    assert not any(row.checked for row in rows)
    assert [row.problem.split()[1] for row in rows] == ["writes", "writes", "type"]


@pytest.mark.parametrize("op", ["linear", "gate_up", "project_add", "logits"])
def test_half_of_a_result_is_wrong(op: str) -> None:
    """Right as far as it goes, in half of the time."""

    class Half(PlainBackend):
        pass

    def half(self: PlainBackend, *of: object, **named: object) -> torch.Tensor:
        y: torch.Tensor = getattr(PlainBackend, op)(self, *of, **named)
        return y[:, : y.shape[1] // 2]

    setattr(Half, op, half)
    (row,) = measure([work_of(op)], Half(CPU))
    assert not row.checked
    assert "its shape is (3, " in row.problem


def test_figures() -> None:
    cost = Cost(bytes=8_000_000, flops=4_000_000_000)
    found = figures(cost, Times(4000.0, 3900.0, 4200.0), ROOFS, "bf16", sets=5, cold=True)
    assert (found.us, found.us_low, found.us_high, found.sets) == (4000.0, 3900.0, 4200.0, 5)
    assert found.gbps == pytest.approx(2.0)
    assert found.tflops == pytest.approx(1.0)
    # 8 MB take 2 ms at 4 GB/s, 4 GFLOP as long at 2 TFLOP/s
    assert found.bound == "memory"
    assert found.share == pytest.approx(0.5)
    slower = figures(cost, Times(4000.0, 3900.0, 4200.0), ROOFS, "fp32", sets=5, cold=False)
    assert slower.bound == "compute"
    assert slower.share == pytest.approx(1.0)
    cached = figures(cost, Times(4000.0, 3900.0, 4200.0), ROOFS, "bf16", sets=5, cold=False)
    assert cached.share is None


def test_ratio_is_to_the_fastest_baseline() -> None:
    found = figures(Cost(8, 0), Times(40.0, 40.0, 40.0), ROOFS, "bf16", 2, True)
    slow, fast = Times(90.0, 1.0, 99.0), Times(60.0, 50.0, 70.0)
    best = beside(found, [("slow", slow), ("fast", fast)])
    assert (best.baseline, best.baseline_us) == ("fast", 60.0)
    assert best.ratio == pytest.approx(1.5)
    assert beside(found, []).ratio is None
    in_graph = beside(found, [("graph", fast._replace(graph=True)), ("slow", slow)])
    assert in_graph.baseline == "slow"  # its launches are in its time, as they are in the op's


def test_the_op_is_timed_first_and_then_its_baselines() -> None:
    (row,) = measure([work_of("linear")], PlainBackend(CPU), FakeTimer(50.0, 200.0))
    assert row.figures is not None
    assert (row.figures.us, row.figures.baseline) == (50.0, "F.linear")
    assert row.figures.ratio == pytest.approx(4.0)


@pytest.mark.parametrize("op", ["linear", "attention", "silu_mul"])
def test_sets_exceed_the_cache(op: str) -> None:
    timer, work = FakeTimer(cache=1 << 17), work_of(op)
    (row,) = measure([work], PlainBackend(CPU), timer)
    assert row.figures is not None
    calls = timer.calls[0]
    assert len(calls) == row.figures.sets > 2
    name = {"linear": "weight", "attention": "cache", "silu_mul": "x"}[op]
    held = [call.keywords[name] for call in calls]  # type: ignore[attr-defined]
    parts = [
        one.parts[0] if op == "linear" else one[0] if op == "attention" else one for one in held
    ]
    assert len({part.data_ptr() for part in parts}) == len(parts)
    cold = least(work, BF16).bytes * len(calls) >= SWEEP * timer.cache
    assert row.figures.cold == cold
    assert cold or len(calls) == MOST


@pytest.mark.parametrize(
    ("nbytes", "cache", "sets"), [(100, 1000, 30), (1000, 100, 2), (1, 10**6, MOST), (0, 0, 2)]
)
def test_number_of_sets(nbytes: int, cache: int, sets: int) -> None:
    assert sets_of(nbytes, cache) == sets


@pytest.mark.parametrize("kind", WEIGHTS)
def test_matrices_are_random_and_keep_sizes(kind: str) -> None:
    work = work_of("gate_up", kind)
    matrices = [m.dequantize(torch.float32) for m in random_matrices(work, BF16, CPU, 3, 0)]
    assert len({tuple(m[0].tolist()) for m in matrices}) == 3
    for matrix in matrices:
        assert matrix.shape == (192, 64)
        assert 0.8 < float(matrix.square().sum(dim=1).mean()) < 1.3


@pytest.mark.parametrize(
    ("m", "new", "cached"), [(1, (1,), (95,)), (3, (1, 1, 1), (95, 95, 95)), (70, (70,), (26,))]
)
def test_case_of_a_work(m: int, new: tuple[int, ...], cached: tuple[int, ...]) -> None:
    work = work_of("qkv", m=m)
    assert (case_of(work).new, case_of(work).cached) == (new, cached)
    batch = KernelInputs(work, BF16, CPU, 0).batch
    assert len(set(batch.slots.tolist())) == m
    assert batch.positions.max() == 95
    assert batch.starts.tolist() == [sum(new[:i]) for i in range(len(new) + 1)]


def test_cost_is_of_the_weight_and_the_type() -> None:
    dense, int8, int4 = (least(work_of("linear", kind, 1), BF16).bytes for kind in
                         ("dense", "int8", "int4"))  # fmt: skip
    rest = 2 * (64 + 96)
    assert dense == 96 * 64 * 2 + rest
    assert int8 == 96 * (64 + 2) + rest
    assert int4 == 96 * (32 + 2) + rest  # the group is 64
    assert least(work_of("linear", "dense", 1), torch.float32).bytes == 2 * dense
    _, down = works(TINY, ["project_add"], ["dense"], [1], 96)
    assert least(down, BF16).flops == 2 * 96 * 64 + 64


@pytest.mark.parametrize("m", [1, 3, 70])
@pytest.mark.parametrize("op", ["attention", "rms_norm", "silu_mul"])
def test_baselines_compute_the_same(op: str, m: int) -> None:
    work, backend = work_of(op, m=m), PlainBackend(CPU)
    arguments = KernelInputs(work, torch.float32, CPU, 0).arguments()
    wanted = getattr(backend, op)(**arguments)
    for one in baselines(work, arguments):
        found = one.call()
        assert isinstance(found, torch.Tensor)
        if op == "attention":
            found = found.transpose(1, 2)
        assert error(found.reshape(wanted.shape), wanted).largest < 1e-4


@pytest.mark.parametrize("kind", WEIGHTS)
def test_products_compute_the_same(kind: str) -> None:
    work = work_of("linear", kind, 3)
    (weight,) = random_matrices(work, BF16, CPU, 1, 0)
    x = torch.randn(3, 64, dtype=BF16)
    wanted = x.double() @ weight.dequantize(torch.float64).T
    names = []
    for product in products(weight, BF16):
        names.append(product.name)
        assert error(product.of(x), wanted).rms < 2 * bound("linear", BF16, quantized=True).rms
    own = {Int8: ["_weight_int8pack_mm"], Int4: ["_weight_int4pack_mm_for_cpu"]}
    assert names == ["F.linear", *own.get(type(weight), [])]


def test_rows_keep_their_order_and_roofs_are_taken_beside_each() -> None:
    todo = [work_of("linear", m=1), work_of("rms_norm"), work_of("linear", m=3)]
    reads = [5, 2, 3, 4, *(6, 6) * 4]  # before and after each of six rows
    taken = iter([Roofs(1e9, 1e9 * i, {"fp32": 1e12, "bf16": 1e12}) for i in reads])
    both: list[tuple[Backend, str, torch.dtype]] = [
        (PlainBackend(CPU), "bf16", BF16), (WrongBackend(CPU), "bf16", BF16)
    ]  # fmt: skip
    bench = KernelBench(both, FakeTimer(), lambda: next(taken))
    told: list[tuple[int, int, str]] = []
    rows = bench.rows(todo, lambda *what: told.append(what))
    names = [(row.backend, row.op, row.m) for row in rows]
    assert names == [(b, w.op, w.m) for w in todo for b in ("plain", "wrong")]
    assert [done for done, _, _ in told] == list(range(6))
    assert bench.roof.read == pytest.approx(6e9)
    right = [row.figures for row in rows if row.backend == "plain"]
    assert [f and f.memory_roof for f in right] == [5e9, 6e9, 6e9]
    second = next(row.figures for row in rows if row.backend == "wrong")
    assert second is not None
    assert second.memory_roof == 4e9
    assert list(taken) == []


@pytest.mark.parametrize(("reads", "share"), [([1, 1, 1, 50, 2], 0.46), ([1, 1, 1, 1, 1], 23)])
def test_a_roof_that_an_op_is_above_is_taken_again(reads: list[int], share: float) -> None:
    """Other programs disturb it; what stays above is told all the same."""
    work, times = work_of("linear", m=1), FakeTimer(1.0, cache=1 << 12)
    taken = iter(reads)
    bench = KernelBench(
        [(PlainBackend(CPU), "bf16", BF16)], times,
        lambda: Roofs(1e6, 5.5e8 * next(taken), {"fp32": 1e12, "bf16": 1e12}),
    )  # fmt: skip
    (row,) = bench.rows([work])
    assert row.figures is not None
    assert row.figures.share == pytest.approx(share, rel=0.05)


def test_quartiles() -> None:
    assert quartiles([5.0, 1.0, 3.0, 2.0, 4.0]) == Times(3.0, 2.0, 4.0)


@pytest.mark.parametrize(
    ("text", "size"), [("32768K\n", 32 << 20), ("32M", 32 << 20), ("512", 512), ("1G", 1 << 30)]
)
def test_size_of_a_cache(text: str, size: int) -> None:
    assert read_size(text) == size


def test_caches_of_groups_of_cores_are_taken_together(tmp_path: Path) -> None:
    """Two groups of two cores, with a last level each."""
    for cpu in range(4):
        last = (3, f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}", "32M")
        for i, (level, sharing, size) in enumerate([(1, cpu, "48K"), (2, cpu, "40M"), last]):
            folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{i}"
            folder.mkdir(parents=True)
            for name, text in (("level", level), ("shared_cpu_list", sharing), ("size", size)):
                (folder / name).write_text(f"{text}\n")
    assert cpu_cache(tmp_path) == 64 << 20
    assert cpu_cache(tmp_path / "nothing") == UNKNOWN_CACHE
    (folder / "level").unlink()
    assert cpu_cache(tmp_path) == UNKNOWN_CACHE


def test_every_call_has_run_before_one_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first product of PyTorch's int4 kernel packs its matrix."""
    ran: list[int] = []
    before: list[int] = []

    def once(self: CallTimer, call: Call) -> float:
        before.append(len(ran))
        call()
        return 1e6

    monkeypatch.setattr(CallTimer, "_once", once)
    calls = [partial(ran.append, i) for i in range(5)]
    CallTimer(CPU).microseconds(calls)
    assert ran[:5] == list(range(5))
    assert before[0] == 5
    assert len(before) == LEAST_CALLS

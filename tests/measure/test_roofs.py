"""The roofs: arithmetic, and what is measured for them."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

import pytest
import torch

from llama2gpu.errors import BackendError
from llama2gpu.measure import limits, roofs
from llama2gpu.measure.kernel_bench import Row, figures
from llama2gpu.measure.kernel_timer import Times
from llama2gpu.measure.roofline_plot import points, roofline
from llama2gpu.measure.roofs import Roofing, Roofs, middle
from llama2gpu.ops.cost import Cost
from tests.measure.fake_kernels import CPU, ROOFS


def test_roofs() -> None:
    assert ROOFS.memory == 4e9
    assert ROOFS.compute("bf16") == 2e12
    slow = Roofs(5e9, 4e9, {"fp32": 3e12, "fp16": 1e12})
    assert (slow.memory, slow.compute("fp16")) == (5e9, 3e12)
    assert ROOFS.bound(Cost(4, 1), "bf16") == "memory"
    assert ROOFS.bound(Cost(4, 2001), "bf16") == "compute"
    assert ROOFS.seconds(Cost(8_000_000_000, 1), "bf16") == 2.0
    assert ROOFS.seconds(Cost(1, 4_000_000_000_000), "bf16") == 2.0


def test_middle_of_several() -> None:
    several = [Roofs(1.0, 6.0, {"fp32": 2.0}), Roofs(9.0, 4.0, {"fp32": 8.0}),
               Roofs(3.0, 5.0, {"fp32": 4.0})]  # fmt: skip
    assert middle(several) == Roofs(3.0, 5.0, {"fp32": 4.0})


def test_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of copies both ways count; memory holds random bits; each type has its product."""

    def fastest(work: Callable[[], object], device: torch.device, repeats: int) -> float:
        work()
        return 0.5

    monkeypatch.setattr(roofs, "fastest", fastest)
    monkeypatch.setattr(limits, "fastest", fastest)
    monkeypatch.setattr(roofs, "BLOCK", {"cpu": 1 << 16})
    monkeypatch.setattr(roofs, "SIZE", {"cpu": 32})
    made = Roofing(CPU, {"bf16": torch.bfloat16})
    found = made.measure()
    assert found.copy == 2 * (1 << 16) / 0.5
    assert found.read == (1 << 16) / 0.5
    assert found.matmul == {"fp32": 2 * 32**3 / 0.5, "bf16": 2 * 32**3 / 0.5}
    assert torch.equal(made.block, made.target)
    assert len(set(made.block.tolist())) == len(made.block)


def row(op: str, m: int, us: float, weight: str = "dense", **extra: object) -> Row:
    cost = Cost(1_000_000, 2_000_000 * m)
    cold = bool(extra.get("cold", True))
    found = figures(cost, Times(us, us, us), ROOFS, "bf16", 2, cold)
    backend = str(extra.get("backend", "torch"))
    return Row(backend, op, "decode", weight, "bf16", m, 8, 8, 64, "", found)


def texts(svg: bytes) -> list[str]:
    tree = ElementTree.fromstring(svg)
    return [
        "".join(node.itertext()).strip() for node in tree.iter("{http://www.w3.org/2000/svg}text")
    ]


def test_plot_is_svg_with_a_label_for_each_point() -> None:
    pytest.importorskip("matplotlib")
    rows = [row("linear", m, 300.0 + m, w) for m in (3, 17, 71) for w in ("dense", "int4")]
    rows += [row("qkv", 29, 500.0, backend="numpy"), row("qkv", 31, 500.0, cold=False)]
    wrong = Row("torch", "qkv", "decode", "dense", "bf16", 97, 8, 8, 64, "its error is 1", None)
    found = texts(roofline([*rows, wrong], ROOFS, "A title", "svg"))
    for m, times in ((3, 2), (17, 2), (71, 2), (29, 1), (31, 1), (97, 0)):
        assert found.count(str(m)) == times
    assert {"A title", "linear", "qkv", "dense", "int4", "torch, bf16", "in cache"} <= set(found)
    assert {"read 4 GB/s", "copy 3 GB/s", "matmul bf16 2 TFLOP/s"} <= set(found)


def test_plot_of_many_points_is_the_same_each_time() -> None:
    pytest.importorskip("matplotlib")
    rows = [row("linear", m, 300.0) for m in range(1, 20)]
    assert roofline(rows, ROOFS, "t", "svg") == roofline(rows, ROOFS, "t", "svg")
    assert roofline(rows, ROOFS, "t", "png").startswith(b"\x89PNG")


def test_what_computes_nothing_is_not_drawn() -> None:
    pytest.importorskip("matplotlib")
    found = figures(Cost(64, 0), Times(1.0, 1.0, 1.0), ROOFS, "bf16", 2, True)
    moved = Row("torch", "embed", "decode", "dense", "bf16", 1, 8, 8, 64, "", found)
    assert points([moved]) == []
    with pytest.raises(BackendError, match="nothing to plot"):
        roofline([moved], ROOFS, "t", "svg")

"""Compiling ahead: what is compiled without memory is what the launch of real tensors looks for."""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from triton.runtime import driver

from llama2gpu.config import Config
from llama2gpu.kernels.arch import ARCHS
from llama2gpu.kernels.launch import INTERPRETED, Launch
from llama2gpu.kernels.warm import Warmed, cache_folder, warm
from llama2gpu.measure.kernel_work import works
from llama2gpu.measure.kernels import record
from tests.kernels.fake_driver import FakeDriver

pytestmark = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET is set: nothing compiles")

ARCH = ARCHS["sm_90"]
SMALL = Config(
    dim=256, hidden=512, layers=1, heads=4, kv_heads=2, head_dim=64, vocab=96, context=1024
)


@pytest.fixture
def _gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(driver, "_active", FakeDriver(ARCH.target, ARCH.shared), raising=False)


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """Products of 1, 2 and 16 tokens, the last also with another argument of the same kind."""
    found = list(works(SMALL, ["project_add"], ["dense"], [1, 2, 3, 16], 512))
    launches = [x for work in found if work.k == 256 for x in record(work, ARCH)]
    forget(launches, monkeypatch)
    return launches


def forget(launches: list[Launch], monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the process had just begun."""
    for kernel in {x.kernel for x in launches}:
        monkeypatch.setattr(kernel, "device_caches", defaultdict(kernel.create_binder))


def real(made: Launch) -> Launch:
    """The same on tensors that have memory."""
    arguments = {
        name: torch.empty(x.shape, dtype=x.dtype) if isinstance(x, torch.Tensor) else x
        for name, x in made.arguments.items()
    }
    return replace(made, arguments=arguments)


@pytest.mark.usefixtures("_gpu")
def test_a_launch_finds_what_was_compiled_without_memory(
    project: list[Launch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int, Warmed]] = []
    done = warm(project, lambda *now: told.append(now))
    assert [(one.cached, one.error) for one in done] == [(False, "")] * 3
    assert [(i, total, last) for i, (_, total, last) in enumerate(told)] == [
        (i, 3, last) for i, last in enumerate(done)
    ]
    assert cache_folder() == str(tmp_path)
    files = sorted(tmp_path.rglob("*"))

    forget(project, monkeypatch)
    keys = [real(one).warm().hash for one in project]
    assert keys[1] == keys[2]
    assert len(set(keys)) == 3  # 2 and 3 tokens are of one kind
    assert sorted(tmp_path.rglob("*")) == files
    forget(project, monkeypatch)
    assert [one.cached for one in warm([real(one) for one in project])] == [True] * 3


@pytest.mark.usefixtures("_gpu")
def test_what_fails_is_told(project: list[Launch], monkeypatch: pytest.MonkeyPatch) -> None:
    first, *rest = project
    odd = replace(first, plan=replace(first.plan, constants={**first.plan.constants, "BLOCK": 12}))
    done = warm([odd, *rest])
    assert [bool(one.error) for one in done] == [True, False, False]
    assert done[0].launch is odd
    assert "\n" not in done[0].error

    small = FakeDriver(ARCH.target, 1024, device=1)
    monkeypatch.setattr(driver, "_active", small)
    forget(project, monkeypatch)
    assert ["shared memory" in one.error for one in warm(project)] == [False, True, True]


@pytest.mark.usefixtures("_gpu")
def test_what_failed_beside_others_is_compiled_alone(
    project: list[Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.runtime._async_compile import FutureKernel

    result = FutureKernel.result
    failed: list[Any] = []

    def once(kernel: Any, ignore_errors: bool = False) -> Any:
        if failed:
            return result(kernel, ignore_errors)
        failed.append(kernel)
        kernel.cleanup_compile(kernel)
        raise RuntimeError("another one failed at the same time")

    monkeypatch.setattr(FutureKernel, "result", once)
    told: list[Launch] = []
    done = warm(project, lambda count, total, last: told.append(last.launch))
    assert failed
    assert [one.error for one in done] == [""] * 3
    assert done[0].launch is project[0]
    assert list(map(id, told)) == [id(done[i].launch) for i in (1, 2, 0)]


@pytest.mark.usefixtures("_gpu")
def test_an_interruption_does_not_wait(project: list[Launch]) -> None:
    def interrupt(*now: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        warm(project, interrupt, workers=1)
    assert [one.error for one in warm(project)] == [""] * 3  # as ever

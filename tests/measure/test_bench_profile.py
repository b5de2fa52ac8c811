"""Traces: valid JSON with the ops by name, whole or not at all."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llama2gpu.api import load
from llama2gpu.backends import choose_backend
from llama2gpu.errors import ResultsError
from llama2gpu.measure.profile import named_ops, profiling


def names(path: Path) -> set[str]:
    return {event.get("name", "") for event in json.loads(path.read_text())["traceEvents"]}


def test_ops_are_in_the_trace(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    llama, path = load(device="cpu"), tmp_path / "trace.json"
    capfd.readouterr()
    with profiling(path, llama.backend):
        llama.generate("Once", max_tokens=3)
    assert {"embed", "layer", "qkv", "attention", "gate_up", "draw"} <= names(path)
    assert [p.name for p in tmp_path.iterdir()] == ["trace.json"]
    assert capfd.readouterr().err == ""


def test_the_backend_is_as_before() -> None:
    backend = choose_backend("torch", "cpu", {"rope": "numpy"})
    before = dict(vars(backend))
    with named_ops(backend):
        assert vars(backend)["rope"] is not before["rope"]
        assert "qkv" in vars(backend)
    assert vars(backend) == before


def test_an_interrupt_keeps_the_trace(tmp_path: Path) -> None:
    path, backend = tmp_path / "trace.json", choose_backend("torch", "cpu")

    def interrupted() -> None:
        with profiling(path, backend):
            torch.ones(3).add(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "aten::add" in names(path)


def test_an_old_trace_is_replaced(tmp_path: Path) -> None:
    path, backend = tmp_path / "trace.json", choose_backend("torch", "cpu")
    path.write_text("old")
    with profiling(path, backend):
        torch.ones(3).add(1)
    assert "aten::add" in names(path)


@pytest.mark.parametrize("place", [".", "missing/trace.json", "/dev/null"])
def test_refused_before_anything_runs(tmp_path: Path, place: str) -> None:
    ran: list[Any] = []
    with (
        pytest.raises(ResultsError, match=r"name|No such file"),
        profiling(tmp_path / place, choose_backend("torch", "cpu")),
    ):
        ran.append(1)
    assert ran == []
    assert list(tmp_path.iterdir()) == []


def test_without_a_file_nothing_is_recorded() -> None:
    backend = choose_backend("torch", "cpu")
    with profiling(None, backend):
        assert "qkv" not in vars(backend)

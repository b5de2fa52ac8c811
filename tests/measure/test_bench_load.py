"""Loading, measured with a clock that counts: which files are read, and what is reported."""

import itertools
import os
import sys
from pathlib import Path

import pytest

from llama2gpu.api import DEFAULT_MODEL
from llama2gpu.config import Config
from llama2gpu.errors import RequestError
from llama2gpu.measure import load, shapes
from llama2gpu.measure.load import LoadResult, LoadRound, measure_load, weight_files, write_shape
from llama2gpu.measure.results import read_results, write_results
from llama2gpu.measure.subject import Subject

TINY = Config(dim=64, hidden=128, layers=2, heads=4, kv_heads=2, head_dim=16, vocab=96, context=64)


def run(subject: Subject, cold: bool = False) -> LoadResult:
    return measure_load(subject, 2, cold=cold, clock=itertools.count().__next__)


def test_a_checkpoint(tmp_path: Path) -> None:
    found = run(Subject(str(DEFAULT_MODEL), device="cpu"))
    assert (found.model, found.quant, found.cold) == ("stories", "none", False)
    assert found.file_bytes == (DEFAULT_MODEL / "model.safetensors").stat().st_size
    assert found.rounds == [LoadRound(1, 1)] * 2
    assert (found.read_ratio, found.mean("load_seconds")) == (1, (1, 0))
    assert (found.memory_bytes is not None) == (sys.platform == "linux")
    write_results(tmp_path / "load.json", [found])
    assert read_results(tmp_path / "load.json")[0]["bench"] == "load"


@pytest.mark.parametrize(("quant", "most"), [("none", 2.0), ("int8:32", 1.2), ("int4:32+head", 1)])
def test_a_shape_is_stored_in_the_form_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quant: str, most: float
) -> None:
    """Bytes of a weight; the head and the embedding stay dense but for +head."""
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)
    subject = Subject("tiny", device="cpu", quant=quant)
    write_shape(subject, tmp_path / "tiny")
    found = measure_load(subject, 1, folder=tmp_path / "tiny", clock=itertools.count().__next__)
    assert (found.model, found.quant) == ("tiny", quant)
    matrices = TINY.parameters - TINY.dim * (2 * TINY.layers + 1)
    dense = TINY.vocab * TINY.dim * (2 if "head" not in quant else 1)
    assert found.weight_bytes <= 2 * dense + most * (matrices - dense)
    assert found.weight_bytes <= found.file_bytes


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs posix_fadvise")
def test_cold_drops_the_files_before_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    dropped: list[str] = []
    monkeypatch.setattr(load, "drop", lambda files: dropped.extend(p.name for p in files))
    found = run(Subject(str(DEFAULT_MODEL), device="cpu"), cold=True)
    assert found.cold
    assert dropped == ["model.safetensors"] * 4


def test_cold_where_the_system_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    with pytest.raises(RequestError, match="without --cold"):
        run(Subject(str(DEFAULT_MODEL), device="cpu"), cold=True)


def test_dropped_files_are_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"weights")
    if hasattr(os, "posix_fadvise"):
        load.drop([path])
    load.read([path])
    assert path.read_bytes() == b"weights"


def test_the_files_that_hold_weights(tmp_path: Path) -> None:
    for name in ("config.json", "b.safetensors", "a.safetensors", "pytorch_model.bin"):
        (tmp_path / name).touch()
    assert [p.name for p in weight_files(tmp_path)] == ["a.safetensors", "b.safetensors"]
    assert weight_files(tmp_path / "config.json") == [tmp_path / "config.json"]

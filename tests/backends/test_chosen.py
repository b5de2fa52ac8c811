"""What `kernels choose` remembers, and how `auto` goes by it."""

import json
import logging
import os
from pathlib import Path

import pytest
import torch

from llama2gpu.api import load
from llama2gpu.backends import auto_order, choose_backend, chosen
from llama2gpu.backends.chosen import Measured, chosen_path, forget, recall, remember
from llama2gpu.build import weight_kind
from llama2gpu.checkpoints import RandomCheckpoint
from llama2gpu.config import Config
from llama2gpu.kernels import user_cache
from llama2gpu.quant.spec import parse_spec

CPU = torch.device("cpu")
SMALL = Config(dim=64, hidden=96, layers=1, heads=2, kv_heads=1, head_dim=32, vocab=40, context=16)
NUMPY_WINS = {"int4": Measured({"torch": 5.0, "numpy": 7.5}, "llama-1.1b", "2026-01-02")}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(chosen.NO_CHOSEN)
    user_cache.warn_once.cache_clear()


def test_kept_and_forgotten() -> None:
    assert recall(CPU) == {}
    path = remember(CPU, NUMPY_WINS)
    assert path == chosen_path(CPU)
    dense = {"dense": Measured({"torch": 3.0}, "stories", "2026-01-03")}
    remember(CPU, dense)
    assert recall(CPU) == NUMPY_WINS | dense
    again = {"int4": Measured({"torch": 9.0}, "stories", "2026-01-04")}
    remember(CPU, again)
    assert recall(CPU) == again | dense
    assert (forget(CPU), forget(CPU), recall(CPU)) == (True, False, {})


def test_auto_goes_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    remember(CPU, NUMPY_WINS)
    assert auto_order(CPU) == ["torch"]
    assert auto_order(CPU, "int4") == ["numpy", "torch"]
    assert choose_backend("auto", "cpu").name == "torch"
    assert choose_backend("auto", "cpu", kind="int4").name == "numpy"
    assert choose_backend("torch", "cpu", kind="int4").name == "torch"
    monkeypatch.setenv(chosen.NO_CHOSEN, "1")
    assert choose_backend("auto", "cpu", kind="int4").name == "torch"


def test_the_weights_of_a_run_decide() -> None:
    remember(CPU, NUMPY_WINS)
    dense, quantized = load(), load(quant="int4")
    assert (dense.backend.name, dense.weight_kind) == ("torch", "dense")
    assert (quantized.backend.name, quantized.weight_kind) == ("numpy", "int4")
    assert load(quant="int4", backend="torch").backend.name == "torch"


def test_kind_of_what_is_stored() -> None:
    assert weight_kind(RandomCheckpoint(SMALL, torch.float32)) == "dense"
    assert weight_kind(RandomCheckpoint(SMALL, torch.float32), parse_spec("int8")) == "int8"


def test_what_can_not_run_is_passed_over() -> None:
    fast = Measured({"torch": 5.0, "triton": 80.0, "of-another-package": 90.0}, "m", "2026-01-02")
    remember(CPU, {"dense": fast})
    assert auto_order(CPU) == ["triton", "torch"]
    assert choose_backend("auto", "cpu").name == "torch"


def test_other_versions_have_another_file(monkeypatch: pytest.MonkeyPatch) -> None:
    remember(CPU, NUMPY_WINS)
    newer = chosen.versions() | {"torch": "99.0"}
    monkeypatch.setattr(chosen, "versions", lambda: newer)
    assert recall(CPU) == {}


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[" * 100_000, b"[]", b"\xff\xfe", b" " * (chosen.LIMIT + 1),
        b'{"format": 2, "kinds": {}}', b'{"format": 1}',
        b'{"format": 1, "kinds": {"int2": {}}}', b'{"format": 1, "kinds": {"int4": 3}}',
        b'{"format": 1, "kinds": {"int4": {"rates": {}}}}',
        b'{"format": 1, "kinds": {"int4": {"rates": {"torch": -1}, "model": "m", '
        b'"date": "2026-01-01"}}}',
        b'{"format": 1, "kinds": {"int4": {"rates": {"torch": NaN}, "model": "m", '
        b'"date": "2026-01-01"}}}',
        b'{"format": 1, "kinds": {"int4": {"rates": {"torch": 1}, "model": 3, '
        b'"date": "2026-01-01"}}}',
        b'{"format": 1, "kinds": {"int4": {"rates": {"torch": 1}, "model": "m", '
        b'"date": "\\u001b[2J"}}}',
        b'{"format": 1, "kinds": {"int4": {"rates": {"torch": 1}, "model": "\\u001b[2J", '
        b'"date": "2026-01-01"}}}',
        b'{"format": 1, "kinds": {"int4": {"rates": {"\\u001b[2J": 1}, "model": "m", '
        b'"date": "2026-01-01"}}}',
        b'{"format": 1, "kinds": {"int4": {"rates": {"torch": 1%s}, "model": "m", '
        b'"date": "2026-01-01"}}}' % (b"0" * 400),
    ],
)  # fmt: skip
def test_damaged(content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path = remember(CPU, NUMPY_WINS)
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING, "llama2gpu"):
        assert (recall(CPU), recall(CPU)) == ({}, {})
    (record,) = caplog.records
    assert str(path) in record.message
    assert "kernels choose" in record.message
    assert remember(CPU, NUMPY_WINS) == path
    assert recall(CPU) == NUMPY_WINS


def test_what_is_no_file(caplog: pytest.LogCaptureFixture) -> None:
    path = chosen_path(CPU)
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    assert recall(CPU) == {}
    assert "it is no file" in caplog.text


def test_the_file_says_of_what_it_is() -> None:
    content = json.loads(remember(CPU, NUMPY_WINS).read_text())
    assert content["device"] == chosen.hardware(CPU)
    assert content["versions"]["torch"]

"""Choosing a backend: names, devices, other people's backends, broken ones among them."""

from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch
from torch import Tensor

from llama2gpu.backends import available, backend_class, choose_backend, probe, serving
from llama2gpu.backends import choose as choosing
from llama2gpu.backends.base import FUSED, PRIMITIVES, Backend, Probe
from llama2gpu.backends.torch import TorchBackend
from llama2gpu.errors import BackendError

CPU = torch.device("cpu")


class Mine(TorchBackend):
    """A backend of somebody else's, with an attention of its own."""

    name = "mine"

    def attention(self, q: Tensor, batch: Any, cache: Any) -> Tensor:
        return super().attention(q, batch, cache)


class FailsToProbe(TorchBackend):
    @classmethod
    def probe(cls, device: torch.device) -> Probe:
        raise OSError("libsomething.so: cannot open")


class Unfinished(Backend):
    name = "unfinished"


class Unrelated:
    pass


@pytest.fixture
def plug(monkeypatch: pytest.MonkeyPatch) -> Any:
    def put(name: str, value: str) -> None:
        point = EntryPoint(name, value, choosing.ENTRY_POINTS)
        monkeypatch.setattr(choosing, "entry_points", lambda group: [point])

    return put


def test_plugged_in(plug: Any) -> None:
    plug("mine", f"{__name__}:Mine")
    backend = choose_backend("mine", "cpu")
    assert (type(backend).__name__, serving(backend)["attention"]) == ("Mine", "own")
    assert serving(backend)["project_add"] == "composed"
    assert set(available()) == {"mine", "torch", "triton", "cupy", "numpy"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (f"{__name__}:FailsToProbe", "libsomething.so"),
        (f"{__name__}:Unfinished", "lacks"),
        (f"{__name__}:Unrelated", "no subclass"),
        (f"{__name__}:Missing", "can't be loaded"),
        ("no_such_module:Backend", "can't be loaded"),
    ],
)
def test_broken_ones_say_so(plug: Any, value: str, message: str) -> None:
    plug("other", value)
    ok, detail = probe("other", CPU)
    assert not ok
    assert message in detail
    with pytest.raises(BackendError, match=message):
        choose_backend("other", "cpu")
    assert choose_backend("auto", "cpu").name == "torch"


def test_names() -> None:
    assert choose_backend("auto", "cpu").name == "torch"
    assert choose_backend("numpy").device == CPU
    with pytest.raises(BackendError, match="choose auto"):
        backend_class("nonsense")


@pytest.mark.parametrize("device", ["nonsense", "cuda:77", "meta", "cpu:3", "xpu"])
def test_devices_that_are_not_there(device: str) -> None:
    with pytest.raises(BackendError):
        choose_backend("auto", device)


def test_who_serves() -> None:
    backend = choose_backend("torch", "cpu", {"rope": "numpy", "qkv": "numpy"})
    found = serving(backend)
    assert found["rope"] == found["qkv"] == "borrowed from numpy"
    assert {found[op] for op in PRIMITIVES if op != "rope"} == {"own"}
    assert {found[op] for op in FUSED} <= {"own", "composed", "borrowed from numpy"}
    assert backend.label == "torch (rope from numpy, qkv from numpy)"

"""What the CuPy backend says where it can't run, and what would mend it."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llama2gpu.backends import choose_backend, cupy, kernel_backend
from llama2gpu.backends.cupy import CupyBackend, missing_package
from llama2gpu.errors import BackendError
from llama2gpu.kernels import cuda_compile


@pytest.fixture
def working(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """An installation of which nothing is missing; what is changed in it shows."""
    nvrtc = SimpleNamespace(getVersion=lambda: (12, 9))
    found: dict[str, Any] = {
        "packages": {"cupy-cuda12x"}, "cuda": "12.8",
        "cupy": SimpleNamespace(__version__="14.2.0"), "cupy_backends.cuda.libs.nvrtc": nvrtc,
    }  # fmt: skip

    def imported(name: str) -> Any:
        if isinstance(found[name], Exception):
            raise found[name]
        return found[name]

    monkeypatch.setattr(cupy, "installed", lambda: found["packages"])
    for module in (cupy, cuda_compile):
        monkeypatch.setattr(module, "import_module", imported)
    monkeypatch.setattr(torch.version, "cuda", found["cuda"])
    return found


def test_nothing_is_missing(working: dict[str, Any]) -> None:
    assert missing_package() == ""


@pytest.mark.parametrize(
    ("cuda", "extra"), [("12.8", "cupy"), ("13.0", "cupy13"), (None, "cupy")], ids=str
)
def test_without_cupy(
    working: dict[str, Any], cuda: str | None, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    working["packages"] = set()
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert missing_package() == f"CuPy is not installed: pip install 'llama2gpu[{extra}]'"


def test_two_wheels(working: dict[str, Any]) -> None:
    working["packages"] = {"cupy-cuda12x", "cupy-cuda13x"}
    assert missing_package() == (
        "two CuPy packages overwrite each other: pip uninstall -y cupy-cuda12x cupy-cuda13x; "
        "pip install 'llama2gpu[cupy]'"
    )


def test_a_wheel_for_another_cuda(working: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert missing_package() == (
        "cupy-cuda12x is for CUDA 12, PyTorch for CUDA 13: "
        "pip uninstall -y cupy-cuda12x; pip install 'llama2gpu[cupy13]'"
    )


@pytest.mark.parametrize(
    ("cuda", "package"), [("12.8", "nvidia-cuda-nvrtc-cu12"), ("13.0", "nvidia-cuda-nvrtc")]
)
def test_without_nvrtc(
    working: dict[str, Any], cuda: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    working["packages"] = {f"cupy-cuda{cuda[:2]}x"}

    def gone() -> None:
        raise RuntimeError("libnvrtc.so.12: cannot open shared object file\nmore")

    working["cupy_backends.cuda.libs.nvrtc"] = SimpleNamespace(getVersion=gone)
    assert missing_package() == (
        "CUDA's compiler NVRTC is missing (libnvrtc.so.12: cannot open shared object file): "
        f"pip install {package}"
    )


def test_a_broken_cupy(working: dict[str, Any]) -> None:
    working["cupy"] = ImportError("numpy is too new\nsecond line")
    assert missing_package() == (
        "CuPy can't be imported (numpy is too new): pip install 'llama2gpu[cupy]'"
    )


def test_without_a_gpu() -> None:
    ok, detail = CupyBackend.probe(torch.device("cpu"))
    assert not ok
    assert detail == "CuPy needs a CUDA GPU, this is cpu: use --backend torch"
    with pytest.raises(BackendError, match="backend 'cupy' can't run here: CuPy needs a CUDA GPU"):
        choose_backend("cupy", "cpu")


def test_a_kernel_that_does_not_run_is_told(
    working: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(device: torch.device) -> None:
        raise RuntimeError("no kernel image is available\nmore")

    working["llama2gpu.kernels.cuda_run"] = SimpleNamespace(CupyRunner=failing)
    for module in (cupy, kernel_backend):
        monkeypatch.setattr(module, "device_name", lambda device: "cuda:0 (Tesla)")
    ok, detail = CupyBackend.try_kernel(torch.device("cpu"), "")
    assert not ok
    assert detail == "a kernel does not run on cuda:0 (Tesla): no kernel image is available"
    assert CupyBackend.probe(torch.device("cuda", 0)).ok is False

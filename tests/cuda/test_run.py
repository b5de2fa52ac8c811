"""What is compiled for a GPU and how it is launched there, with a stand-in for the driver."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llama2gpu.kernels import cuda_compile
from llama2gpu.kernels.cuda import CudaLaunch
from llama2gpu.kernels.cuda_compile import cached_binary, compile_binary, missing_compiler

pytestmark = pytest.mark.skipif(bool(missing_compiler()), reason=missing_compiler())

MACROS = tuple(
    f"-D{name}={value}"
    for name, value in {
        "TYPE": "bf16", "BITS": 4, "SCALE": "bf16", "ZEROS": 0, "NORM": 0, "ALIGNED": 1,
        "TOKENS": 1, "ROWS": 8,
    }.items()
)  # fmt: skip


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.parametrize("options", [cuda_compile.OPTIONS, ("--std=c++17", "-ftz=true")], ids=str)
def test_denormal_numbers_stay(
    options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed weights are denormal numbers: no compiler's option may make them zero."""
    from triton import knobs

    from llama2gpu.kernels.machine_code import run_tool

    monkeypatch.setattr(cuda_compile, "OPTIONS", options)
    path = tmp_path / "kernel.cubin"
    path.write_bytes(compile_binary("linear", MACROS, 90))
    listing = run_tool(knobs.nvidia.nvdisasm, "-c", str(path))
    exact = len(re.findall(r"\bFFMA(?!\.FTZ)\b", listing))
    assert exact >= 8 * 32  # a row's unit has 32 weights
    if "-ftz=false" in options:
        assert "FTZ" not in re.sub(r"MUFU\S*", "", listing)


def test_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = cached_binary("norm", ("-DTYPE=float",), 90)
    assert made.startswith(b"\x7fELF")
    (path,) = (tmp_path / "llama2gpu" / "cuda").iterdir()
    assert path.stat().st_mode & 0o077 == 0

    def compiled(*_: object) -> bytes:
        raise AssertionError("it is in the cache")

    with monkeypatch.context() as patch:
        patch.setattr(cuda_compile, "compile_binary", compiled)
        assert cached_binary("norm", ("-DTYPE=float",), 90) == made
    path.write_bytes(path.read_bytes()[:-9] + b"!" * 9)
    assert cached_binary("norm", ("-DTYPE=float",), 90) == made


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cached_binary("norm", ("-DTYPE=float",), 90).startswith(b"\x7fELF")


def test_a_newer_card_takes_ptx() -> None:
    assert b".target sm_" in compile_binary("norm", ("-DTYPE=float",), 199)


def test_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_run: Any = pytest.importorskip("llama2gpu.kernels.cuda_run")
    calls: list[tuple[Any, ...]] = []

    class Module:
        def load(self, binary: bytes) -> None:
            assert binary.startswith(b"\x7fELF")

        def get_function(self, name: str) -> Any:
            return lambda *arguments: calls.append((name, *arguments))

    class Device:
        compute_capability = "75"

        def __init__(self, index: int) -> None:
            assert index == 1

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    stream = SimpleNamespace(from_external=lambda handle: handle.__cuda_stream__())
    monkeypatch.setattr(cuda_run, "Module", Module)
    stand_in = SimpleNamespace(cuda=SimpleNamespace(Device=Device, Stream=stream))
    monkeypatch.setattr(cuda_run, "cupy", stand_in)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda d: SimpleNamespace(cuda_stream=99))
    x = torch.ones(3, 8)
    run = cuda_run.CupyRunner(torch.device("cuda", 1))
    macros = {"TYPE": "float"}
    run(CudaLaunch("norm", "rms_norm", (3, 1, 1), 32, (x, None, 8, 0.5), macros))
    run(CudaLaunch("norm", "rms_norm", (0, 1, 1), 32, (x,), macros))
    ((name, grid, threads, arguments, shared, where),) = calls
    assert (name, grid, threads, shared, where) == ("rms_norm", (3, 1, 1), (32, 1, 1), 0, (0, 99))
    assert [type(a).__name__ for a in arguments] == ["uint64", "uint64", "int32", "float32"]
    assert [a.item() for a in arguments] == [x.data_ptr(), 0, 8, 0.5]

"""The row kernels where compilers and caches are not as they should be: mended, or left out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llama2gpu.backends import cpu_rows
from llama2gpu.backends.base import Norm
from llama2gpu.backends.matrix import OrderedMatrix
from llama2gpu.backends.prepare import prepare_matrix
from llama2gpu.backends.torch import TorchBackend
from llama2gpu.kernels import rows
from llama2gpu.quant import Dense, Int4, Int8
from tests.ops.forms import (
    ARCHITECTURES,
    FORMS,
    built_for,
    cache_folder,
    find_library,
    find_probe,
    taking,
)

SOURCE = Path(rows.__file__).resolve().parent / "rows.c"
GCC = ("-std=gnu17", "-fopenmp", "-Wall", "-Wextra", "-Werror", "-fsyntax-only")

#: What a broken compiler is, as a shell script.
BROKEN = {
    "fails": "exit 1",
    "fails without a word": "echo >&2; exit 1",
    "says no": "echo 'no license' >&2; echo 'go away' >&2; exit 1",
    "speaks binary": r"printf '\377\376\200'; exit 0",
    "fails in binary": r"printf '\377\376\200' >&2; exit 1",
    "does nothing": "exit 0",
    "killed": "kill -9 $$",
    "makes garbage": 'while [ $# -gt 0 ]; do [ "$1" = -o ] && echo garbage >"$2"; shift; done',
    "makes nothing of use": 'for last; do :; done; [ "$1" = --version ] && exit; '
    'while [ $# -gt 0 ]; do [ "$1" = -o ] && out=$2; shift; done; '
    'echo "int x;" | gcc -shared -x c - -o "$out"',
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own; libraries that others use stay as they are."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(rows.COMPILER, raising=False)
    monkeypatch.setattr(rows, "library", find_library)


@pytest.fixture
def _compiler() -> None:
    if (found := built_for(None)).bound is None:
        pytest.skip(found.detail)


def cached(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "llama2gpu").iterdir())


def left_out(detail: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are none, for a reason of one line, and PyTorch multiplies instead."""
    found = rows.library()
    assert found.bound is None
    assert detail in found.detail
    assert found.detail.count("\n") == 0
    monkeypatch.setattr(cpu_rows, "probe_rows", find_probe)
    assert cpu_rows.probe_rows() == (False, found.detail)
    matrix = prepare_matrix(Dense(torch.eye(3)), "cpu", False)
    assert torch.equal(matrix.linear(torch.ones(2, 3)), torch.ones(2, 3))


@pytest.mark.parametrize("name", ["none", "no-such-compiler", "/nonexistent/cc"])
def test_no_compiler(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(rows.COMPILER, name)
    left_out(f"no C compiler ({name})", monkeypatch)


def test_nothing_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    left_out("install gcc", monkeypatch)


@pytest.mark.usefixtures("_compiler")
@pytest.mark.parametrize("kind", BROKEN)
def test_broken_compiler(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "cc"
    script.write_text(f"#!/bin/sh\n{BROKEN[kind]}\n")
    script.chmod(0o755)
    monkeypatch.setenv(rows.COMPILER, str(script))
    left_out("no license" if kind == "says no" else "", monkeypatch)
    left = cached(tmp_path) if (tmp_path / "cache").exists() else []
    assert all(path.suffix == ".so" for path in left)


def test_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cc").write_bytes(b"\0\1")
    (tmp_path / "cc").chmod(0o755)
    monkeypatch.setenv(rows.COMPILER, str(tmp_path / "cc"))
    left_out("Exec format error", monkeypatch)


@pytest.mark.usefixtures("_compiler")
def test_cache_that_can_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file")
    left_out(str(tmp_path), monkeypatch)


@pytest.mark.usefixtures("_compiler")
def test_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    left_out("home directory", monkeypatch)


@pytest.mark.usefixtures("_compiler")
@pytest.mark.parametrize("mode", [0o777, 0o720, 0o702])
def test_cache_that_others_write(
    mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache" / "llama2gpu"
    folder.mkdir(parents=True)
    folder.chmod(mode)
    left_out("others can write", monkeypatch)
    assert cached(tmp_path) == []


@pytest.mark.usefixtures("_compiler")
def test_cache_of_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    left_out("another user's", monkeypatch)


@pytest.mark.usefixtures("_compiler")
@pytest.mark.parametrize("part", ["data", "scales", "zeros"])
def test_wrong_results_are_seen(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one row of an int4 matrix, in its last block and second group."""
    pack = cpu_rows._pack

    def damaged(weight: Int8 | Int4) -> cpu_rows.Packed | None:
        packed = pack(weight)
        if isinstance(weight, Int4):
            tensor = getattr(packed, part)
            tensor[-1, -1, 1] = tensor[-1, -1, 1] + 1
        return packed

    assert find_probe().ok
    monkeypatch.setattr(cpu_rows, "_pack", damaged)
    assert not find_probe().ok
    assert "gives wrong results" in find_probe().detail


@pytest.mark.usefixtures("_compiler")
def test_what_does_not_fit_never_reaches_the_kernel() -> None:
    matrix, x = cpu_rows.DenseRows(torch.eye(32)), torch.ones(2, 32)
    fitting = Norm(torch.ones(32), 1e-5)
    assert matrix.fused(x, fitting, torch.ones(2, 32), gated=False) is not None
    for norm in (torch.ones(31), torch.ones(32).half()):
        with pytest.raises(AssertionError):
            matrix.fused(x, Norm(norm, 1e-5), None, gated=False)
    for residual in (torch.ones(1, 32), torch.ones(2, 31), torch.ones(2, 32).half()):
        with pytest.raises(AssertionError):
            matrix.fused(x, None, residual, gated=False)


def test_columns_in_another_order_are_compiled_too() -> None:
    with taking("rows"):
        weight = FORMS["int4-order"][1](torch.randn(64, 96))
        backend = TorchBackend(torch.device("cpu"))
        matrix = backend.prepare(weight, "linear")
    assert isinstance(matrix, OrderedMatrix)
    assert isinstance(matrix.inner, cpu_rows.PackedRows)
    assert backend.compiled
    assert matrix.nbytes == weight.nbytes


@pytest.mark.usefixtures("_compiler")
def test_the_cache_is_the_users_own(tmp_path: Path) -> None:
    assert rows.library().bound is not None
    assert (tmp_path / "cache" / "llama2gpu").stat().st_mode & 0o077 == 0
    (path,) = cached(tmp_path)
    built = path.stat().st_mtime_ns
    assert rows.library().bound is not None
    assert path.stat().st_mtime_ns == built


@pytest.mark.usefixtures("_compiler")
@pytest.mark.parametrize("keep", [0, 0.4, 1.0])
def test_damaged_library_is_built_again(keep: float, tmp_path: Path) -> None:
    """To load a file that was cut short would end the process; keep 1.0 is one changed byte."""
    found = next(
        path for path in cache_folder().rglob("*.so") if path.name in built_for(None).detail
    )
    whole = found.read_bytes()
    damaged = bytearray(whole[: int(len(whole) * keep)])
    if keep == 1:
        damaged[len(damaged) // 2] ^= 255
    folder = tmp_path / "cache" / "llama2gpu"
    folder.mkdir(parents=True, mode=0o700)
    (folder / found.name).write_bytes(damaged)
    assert rows.library().bound is not None
    assert len((folder / found.name).read_bytes()) == len(whole)
    assert rows._is_whole(folder / found.name)
    assert cached(tmp_path) == [folder / found.name]


@pytest.mark.usefixtures("_compiler")
def test_wrong_results_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = rows.library()
    assert made.bound is not None
    monkeypatch.setattr(rows, "library", lambda: made)
    monkeypatch.setattr(made.bound, "rows_matmul", lambda *_: 0)
    ok, detail = find_probe()
    assert not ok
    assert "wrong results" in detail


@pytest.mark.usefixtures("_compiler")
def test_two_at_once(tmp_path: Path) -> None:
    code = "from llama2gpu.backends.cpu_rows import probe_rows; print(probe_rows().ok)"
    command = [sys.executable, "-c", code]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=120)[0] for process in both] == ["True\n"] * 2
    (path,) = cached(tmp_path)
    assert rows._is_whole(path)


@pytest.mark.usefixtures("_compiler")
@pytest.mark.parametrize("flag", [None, *ARCHITECTURES.values()])
def test_no_warnings(flag: str | None) -> None:
    """But for a calling convention that functions which are always inlined have no use for."""
    flags = [*GCC, flag or rows._processor_flag(), "-Wno-psabi"]
    done = subprocess.run([rows._compiler(), *flags, SOURCE], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.usefixtures("_compiler")
def test_without_a_compiler_the_program_runs(stories: Path) -> None:
    env = {**os.environ, rows.COMPILER: "none"}
    model = [str(stories / "stories260K.bin"), "--tokenizer", str(stories / "tok512.bin")]
    command = [sys.executable, "-m", "llama2gpu", "run", "-m", *model, "-t", "0", "-n", "20", "-q"]
    texts = [
        subprocess.run([*command, "--quant", "int8"], env=e, capture_output=True, text=True)
        for e in (env, dict(os.environ))
    ]
    assert [done.returncode for done in texts] == [0, 0]
    assert texts[0].stdout == texts[1].stdout


#: What the sanitizer watches: each kind of matrix, sizes that fill no vector, tokens around 4.
WATCHED = """
import torch
from llama2gpu.backends.cpu_rows import _matrix, probe_rows
from llama2gpu.backends.base import Norm
from llama2gpu.quant import Dense
from tests.ops.forms import int4, int8
assert probe_rows().ok, probe_rows().detail
for rows, columns in ((1, 32), (17, 96), (30, 160), (33, 352)):
    plain = torch.randn(rows, columns)
    packed = [int8(plain, columns), int8(plain, 32), int4(plain, 32), int4(plain, 32, zeros=True)]
    odd = [Dense(plain[:, :29].to(kind)) for kind in (torch.float32, torch.half, torch.bfloat16)]
    for weight in (*packed, *odd, int8(plain[:, :28].contiguous(), 28)):
        matrix, width = _matrix(weight), weight.shape[1]
        for kind in (torch.float32, torch.half, torch.bfloat16):
            for tokens in (1, 2, 5, 8, 9, 18):
                if isinstance(weight, Dense) and weight.data.dtype != kind:
                    continue
                x = torch.randn(tokens, width).to(kind)
                matrix.linear(x)
                matrix.fused(x, Norm(torch.ones(width), 1e-5), matrix.linear(x), False)
                if rows % 2 == 0:
                    matrix.fused(x, None, None, True)
print("clean")
"""


@pytest.mark.usefixtures("_compiler")
@pytest.mark.parametrize("flag", [None, "-march=x86-64-v3"])
def test_memory_is_respected(flag: str | None, tmp_path: Path) -> None:
    gcc, preloaded = rows._compiler(), []
    for name in ("libasan.so", "libstdc++.so.6"):
        asked = [gcc, f"-print-file-name={name}"]
        done = subprocess.run(asked, capture_output=True, text=True, check=True)
        preloaded.append(done.stdout.strip())
    if not all(Path(path).is_absolute() for path in preloaded):
        pytest.skip(f"{gcc} has no address sanitizer")
    code = (
        "from llama2gpu.kernels import rows\n"
        "rows._FLAGS = (*rows._FLAGS, '-O1', '-fsanitize=address', '-fno-omit-frame-pointer')\n"
        f"rows._processor_flag = lambda: {flag or rows._processor_flag()!r}\n{WATCHED}"
    )
    env = {**os.environ, "LD_PRELOAD": " ".join(preloaded), "ASAN_OPTIONS": "detect_leaks=0"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "clean\n"), done.stderr[-3000:]


def test_every_architecture_is_another_library(tmp_path: Path) -> None:
    with taking("rows"):
        details = {built_for(flag).detail for flag in (None, *ARCHITECTURES.values())}
    assert len(details) == 1 + len(ARCHITECTURES)

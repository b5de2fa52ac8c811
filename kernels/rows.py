"""The CPU's kernels: rows.c and step.c, compiled where a compiler is at hand, and bound.

Nothing requires them: without a compiler PyTorch's own kernels serve. The library is built once for
a compiler and a processor, kept in the user's cache, and checked before it is used.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from ctypes import POINTER, c_float, c_int, c_long, c_void_p
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from llama2gpu.kernels.user_cache import trusted_folder

SOURCES = ("rows.c", "step.c", "rows.h", "rows_dense.h", "rows_packed.h", "attend.h")
#: A compiler to use instead of the ones that are looked for; "none" for none.
COMPILER = "LLAMA2GPU_CC"

KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
INT8, INT4 = 3, 4

_FLAGS = ("-O3", "-std=gnu17", "-fPIC", "-fwrapv", "-fno-math-errno", "-fopenmp")
_DIGEST = hashlib.sha256().digest_size


_pointer, _number, _count, _real = c_void_p, c_int, c_long, c_float


class Matrix(ctypes.Structure):
    """`Matrix` of rows.h."""

    _fields_ = (
        ("kind", _number), ("data", _pointer), ("scale_kind", _number), ("scales", _pointer),
        ("zeros", _pointer), ("rows", _count), ("columns", _count), ("group", _count),
    )  # fmt: skip


class Product(ctypes.Structure):
    """`Product` of rows.h."""

    _fields_ = (
        ("matrix", _pointer), ("kind", _number), ("tokens", _count), ("x", _pointer),
        ("norm", _pointer), ("eps", _real), ("residual", _pointer), ("swiglu", _number),
        ("y", _pointer),
    )  # fmt: skip


class Step(ctypes.Structure):
    """`Step` of step.c."""

    _fields_ = (
        ("kind", _number), ("sequences", _count), ("positions", _pointer),
        ("slots", _pointer), ("lengths", _pointer), ("table", _pointer), ("width", _count),
        ("cosines", _pointer), ("sines", _pointer),
    )  # fmt: skip


class Cache(ctypes.Structure):
    """`Cache` of step.c."""

    _fields_ = (
        ("kind", _number), ("k", _pointer), ("v", _pointer), ("k_scale", _pointer),
        ("v_scale", _pointer), ("kv_heads", _count), ("page", _count), ("size", _count),
    )  # fmt: skip


class Layer(ctypes.Structure):
    """`Layer` of step.c."""

    _fields_ = (
        ("qkv", _pointer), ("o", _pointer), ("gate_up", _pointer), ("down", _pointer),
        ("attention_norm", _pointer), ("ffn_norm", _pointer), ("eps", _real),
    )  # fmt: skip


#: What each function of the library returns and takes.
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "rows_matmul": (_number, POINTER(Product), _number),
    "rows_unpack": (None, POINTER(Matrix), _count, _count, _number, _pointer, _number),
    "step_rope": (None, POINTER(Step), _pointer, _count, _count, _count, _count, _pointer),
    "step_attend": (_number, POINTER(Step), POINTER(Cache), _count, _pointer, _pointer, _number),
    "step_layer": (
        _number, POINTER(Step), POINTER(Cache), POINTER(Layer), _pointer, _pointer, _number,
    ),
}  # fmt: skip


class Library(NamedTuple):
    """The bound library, or None and why."""

    bound: ctypes.CDLL | None
    detail: str


@cache
def library() -> Library:
    """The compiled kernels; the first call may compile them, which takes a few seconds."""
    try:
        compiler = _compiler()
        path = _build(compiler)
        return Library(_bind(path), f"{path.name} by {compiler}")
    except (OSError, RuntimeError, AttributeError, _NotBuiltError) as error:
        return Library(None, str(error))


class _NotBuiltError(Exception):
    pass


def _compiler() -> str:
    wanted = os.environ.get(COMPILER)
    names = [wanted] if wanted else ["gcc", "cc"]
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        raise _NotBuiltError(f"no C compiler ({', '.join(names)}): install gcc")
    return found


def _build(compiler: str) -> Path:
    """The path of the library, compiled where it is not in the cache."""
    here = Path(__file__).resolve().parent
    native = _processor_flag()
    version = _run([compiler, "--version"])
    parts = [(here / name).read_text(encoding="utf-8") for name in SOURCES]
    parts += [compiler, version, native, *_FLAGS, _processor()]
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    path = trusted_folder() / f"rows-{name}.so"
    if not _is_whole(path):
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made, shared = [], f"{folder}/rows.so"
            for source in SOURCES[:2]:
                made.append(f"{folder}/{source}.o")
                _run([compiler, *_FLAGS, native, "-c", str(here / source), "-o", made[-1]])
            # not linked with OpenMP: PyTorch's own copy, loaded already, has the threads
            _run([compiler, "-shared", *made, "-o", shared, "-lm"])
            _seal(Path(shared))
            Path(shared).replace(path)
    return path


def _seal(path: Path) -> None:
    """Appends the digest of a library to it, which a loader does not read."""
    with path.open("ab") as file:
        file.write(hashlib.sha256(path.read_bytes()).digest())


def _is_whole(path: Path) -> bool:
    """Whether a sealed library is there as it was built: to load one cut short is a crash."""
    data = path.read_bytes() if path.exists() else b""
    return hashlib.sha256(data[:-_DIGEST]).digest() == data[-_DIGEST:]


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    except (subprocess.SubprocessError, UnicodeDecodeError) as error:
        said = [*str(getattr(error, "stderr", None) or "").splitlines(), str(error)]
        line = next(line for line in said if line.strip())
        raise _NotBuiltError(f"{command[0]} can't build the row kernels: {line}") from error
    return done.stdout


def _processor_flag() -> str:
    """What makes the compiler use all that this processor has."""
    return "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"


def _processor() -> str:
    """What `native` means here."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _bind(path: Path) -> ctypes.CDLL:
    bound = ctypes.CDLL(str(path))
    for name, (result, *arguments) in _FUNCTIONS.items():
        function = getattr(bound, name)
        function.restype, function.argtypes = result, arguments
    return bound

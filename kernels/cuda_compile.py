"""Compiling CUDA C by NVRTC, for a card that need not be here.

NVRTC is called through CuPy's binding, but not by CuPy's own `RawModule`: that adds `-ftz=true`, so
that packed weights, which are denormal numbers, would be zero, and it asks for CUDA's headers.
"""

import hashlib
from contextlib import suppress
from importlib import import_module
from typing import Any

from llama2gpu.errors import BackendError
from llama2gpu.kernels.cuda import source
from llama2gpu.kernels.user_cache import trusted_folder, write_whole

#: What every kernel is compiled with, besides its macros; denormal numbers stay what they are.
OPTIONS = ("--std=c++17", "-ftz=false")


def compile_binary(file: str, macros: tuple[str, ...], arch: int) -> bytes:
    """The machine code of a file for sm_`arch`, or PTX of a newer one than NVRTC knows.

    Raises `BackendError` with what the compiler says.
    """
    nvrtc = _nvrtc()
    known = nvrtc.getSupportedArchs()
    if arch < min(known):
        version = ".".join(map(str, nvrtc.getVersion()))
        raise BackendError(
            f"NVRTC {version} no longer knows sm_{arch}: CUDA 12's does, of 'llama2gpu[cupy]'"
        )
    target = f"sm_{arch}"
    if not supports(arch):
        target = f"compute_{max(number for number in known if number < arch)}"
    program = nvrtc.createProgram(source(file), f"{file}.cu", (), ())
    try:
        nvrtc.compileProgram(program, (f"-arch={target}", *OPTIONS, *macros))
        if target.startswith("compute"):
            ptx: bytes = nvrtc.getPTX(program)
            return ptx + bytes(1)
        cubin: bytes = nvrtc.getCUBIN(program)
    except Exception as error:  # NVRTC's own
        log = nvrtc.getProgramLog(program).strip() or str(error)
        raise BackendError(f"{file}.cu: {log.splitlines()[0]}") from error
    finally:
        nvrtc.destroyProgram(program)
    return cubin + bytes(-len(cubin) % 8)  # CuPy takes the last byte for the end of a string


def cached_binary(file: str, macros: tuple[str, ...], arch: int) -> bytes:
    """The same from the user's cache, where it was compiled before; a damaged file is made anew."""
    key = repr((source(file), macros, arch, OPTIONS, _nvrtc().getVersion()))
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    try:
        path = trusted_folder() / "cuda" / f"{file}-sm_{arch}-{name}.bin"
        if path.is_file():
            found, _, digest = path.read_bytes().rpartition(b"\n")
            if hashlib.sha256(found).hexdigest().encode() == digest:
                return found
    except (OSError, RuntimeError):  # no home, or a folder that others write to: nothing is kept
        return compile_binary(file, macros, arch)
    made = compile_binary(file, macros, arch)
    with suppress(OSError):  # a full disk, or one that is read alone: compiled again next time
        write_whole(path, made + b"\n" + hashlib.sha256(made).hexdigest().encode())
    return made


def supports(arch: int) -> bool:
    """Whether the NVRTC at hand compiles for sm_`arch`. Raises `BackendError` without one."""
    return arch in _nvrtc().getSupportedArchs()


def missing_compiler() -> str:
    """Why CUDA C can't be compiled here and what mends it; "" where it can."""
    reason = nvrtc_error()
    return reason and f"NVRTC is not at hand through CuPy ({reason}): pip install 'llama2gpu[cupy]'"


def nvrtc_error() -> str:
    """Why CuPy's binding finds no NVRTC; "" where it does."""
    try:
        import_module("cupy_backends.cuda.libs.nvrtc").getVersion()
    except Exception as error:  # of many kinds: it loads the library on first use
        return (str(error).strip() or repr(error)).splitlines()[0]
    return ""


def _nvrtc() -> Any:
    if missing := missing_compiler():
        raise BackendError(missing)
    return import_module("cupy_backends.cuda.libs.nvrtc")

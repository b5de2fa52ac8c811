"""Compiling a CUDA C launch for an architecture that need not be here, by NVRTC through CuPy."""

import re
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from triton import knobs

from llama2gpu.errors import BackendError
from llama2gpu.kernels.arch import Arch
from llama2gpu.kernels.cuda import CudaLaunch, source
from llama2gpu.kernels.machine_code import MachineCode, nvidia_resources, run_tool

#: Architectures that today's disassembler no longer reads, and those that have their instructions.
READ_AS = {"sm_70": "sm_75"}


def cuda_code(launch: CudaLaunch, arch: Arch) -> MachineCode:
    """Compiles a launch's kernel; on sm_70 the assembly is that for sm_75.

    Raises `BackendError` without NVRTC, and where compiling fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(compile_cubin(launch, arch.name))
        usage = run_tool(knobs.nvidia.cuobjdump, "--dump-resource-usage", str(path))
        if arch.name in READ_AS:
            path.write_bytes(compile_cubin(launch, READ_AS[arch.name]))
        assembly = run_tool(knobs.nvidia.nvdisasm, "-c", str(path))
    registers, spilled = nvidia_resources(usage, launch.kernel)
    shared = re.search(rf"Function {launch.kernel}:.*?SHARED:(\d+)", usage, re.DOTALL)
    return MachineCode(
        kernel=launch.kernel,
        arch=arch,
        assembly=_function(assembly, launch.kernel),
        llir="",
        ttgir="",
        registers=registers,
        spill_bytes=spilled,
        shared_bytes=launch.shared + int(shared[1] if shared else 0),
        warps=-(-launch.threads // 32),
        lanes=32,
        parameters=(),
    )


def compile_cubin(launch: CudaLaunch, arch: str) -> bytes:
    """The file's machine code. Raises `BackendError` with what the compiler says."""
    nvrtc = _nvrtc()
    if not supports(arch):
        version = ".".join(map(str, nvrtc.getVersion()))
        raise BackendError(
            f"NVRTC {version} no longer knows {arch}: CUDA 12's does, of 'llama2gpu[cupy]'"
        )
    program = nvrtc.createProgram(source(launch.file), f"{launch.file}.cu", (), ())
    try:
        nvrtc.compileProgram(program, (f"-arch={arch}", "--std=c++17", *launch.options))
    except Exception as error:  # NVRTC's own
        log = nvrtc.getProgramLog(program).strip() or str(error)
        raise BackendError(f"{launch.file}.cu: {log.splitlines()[0]}") from error
    cubin: bytes = nvrtc.getCUBIN(program)
    return cubin + bytes(-len(cubin) % 8)  # CuPy takes the last byte for the end of a string


def supports(arch: str) -> bool:
    """Whether the NVRTC at hand compiles for it. Raises `BackendError` without one."""
    return int(arch.removeprefix("sm_")) in _nvrtc().getSupportedArchs()


def missing_compiler() -> str:
    """Why CUDA C can't be compiled here and what mends it; "" where it can."""
    try:
        import_module("cupy_backends.cuda.libs.nvrtc").getVersion()
    except Exception as error:  # of many kinds: it loads the library on first use
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        return f"NVRTC is not at hand through CuPy ({reason}): pip install 'llama2gpu[cupy]'"
    return ""


def _nvrtc() -> Any:
    if missing := missing_compiler():
        raise BackendError(missing)
    return import_module("cupy_backends.cuda.libs.nvrtc")


def _function(assembly: str, name: str) -> str:
    """One function of what `nvdisasm -c` prints of a file."""
    parts = re.split(r"^\.text\.(\w+):$", assembly, flags=re.MULTILINE)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    return f".text.{name}:{found[name].partition('.section')[0]}"

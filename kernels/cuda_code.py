"""What a CUDA C launch compiles to, for a card that need not be here, as text and numbers."""

import re
import tempfile
from pathlib import Path

from triton import knobs

from llama2gpu.kernels.arch import Arch
from llama2gpu.kernels.cuda import CudaLaunch
from llama2gpu.kernels.cuda_compile import compile_binary
from llama2gpu.kernels.machine_code import MachineCode, nvidia_resources, run_tool

#: Architectures that today's disassembler no longer reads, and those that have their instructions.
READ_AS = {"sm_70": "sm_75"}


def cuda_code(launch: CudaLaunch, arch: Arch) -> MachineCode:
    """Compiles a launch's kernel; on sm_70 the assembly is that for sm_75.

    Raises `BackendError` without NVRTC, and where compiling fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(_compile(launch, arch.name))
        usage = run_tool(knobs.nvidia.cuobjdump, "--dump-resource-usage", str(path))
        if arch.name in READ_AS:
            path.write_bytes(_compile(launch, READ_AS[arch.name]))
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


def _compile(launch: CudaLaunch, arch: str) -> bytes:
    return compile_binary(launch.file, launch.options, int(arch.removeprefix("sm_")))


def _function(assembly: str, name: str) -> str:
    """One function of what `nvdisasm -c` prints of a file."""
    parts = re.split(r"^\.text\.(\w+):$", assembly, flags=re.MULTILINE)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    return f".text.{name}:{found[name].partition('.section')[0]}"

"""What compiling a launch gives, for a device that is here or not, as text and numbers."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triton import knobs

from llama2gpu.errors import BackendError
from llama2gpu.kernels.arch import Arch
from llama2gpu.kernels.launch import INTERPRETED, Launch


@dataclass(frozen=True)
class MachineCode:
    """A compiled kernel.

    assembly: as `nvdisasm -c` prints it, or AMD's own. llir, ttgir: LLVM's and Triton's last form
    before it. registers: 32-bit ones of a lane. spill_bytes: memory of a lane that stands in for
    registers. shared_bytes: of a block. warps: of a block. lanes: of a warp. parameters: names of
    the arguments that are left at run time, in order.
    """

    kernel: str
    arch: Arch
    assembly: str
    llir: str
    ttgir: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    warps: int
    lanes: int
    parameters: tuple[str, ...]


def machine_code(launch: Launch, arch: Arch) -> MachineCode:
    """Compiles a launch for an architecture. Raises `BackendError` in the interpreter."""
    require_compiler()
    compiled = launch.compile(arch.target)
    amd = "amdgcn" in compiled.asm
    assembly = compiled.asm["amdgcn"] if amd else ""
    if amd:
        registers, spilled = _amd_resources(assembly)
    else:
        with tempfile.TemporaryDirectory() as folder:
            cubin = Path(folder, "kernel.cubin")
            cubin.write_bytes(compiled.asm["cubin"])
            assembly = run_tool(knobs.nvidia.nvdisasm, "-c", str(cubin))
            usage = run_tool(knobs.nvidia.cuobjdump, "--dump-resource-usage", str(cubin))
        registers, spilled = nvidia_resources(usage, launch.name)
    return MachineCode(
        kernel=launch.name,
        arch=arch,
        assembly=assembly,
        llir=compiled.asm["llir"],
        ttgir=compiled.asm["ttgir"],
        registers=registers,
        spill_bytes=spilled,
        shared_bytes=compiled.metadata.shared,
        warps=compiled.metadata.num_warps,
        lanes=arch.target.warp_size,
        parameters=tuple(n for n, kind in compiled.src.signature.items() if kind != "constexpr"),
    )


def require_compiler() -> None:
    """Raises `BackendError` where Triton interprets kernels instead of compiling them."""
    if INTERPRETED:
        raise BackendError("kernels can't be compiled in the interpreter: unset TRITON_INTERPRET")


def run_tool(tool: Any, *arguments: str) -> str:
    """What one of the tools that Triton brings along prints."""
    done = subprocess.run([tool.path, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise BackendError(f"{Path(tool.path).name}: {done.stderr.strip() or 'failed'}")
    return done.stdout


def nvidia_resources(usage: str, kernel: str) -> tuple[int, int]:
    """Registers, and bytes of stack and local memory, from cuobjdump's table."""
    found = re.search(
        rf"Function {re.escape(kernel)}:\s+REG:(\d+) STACK:(\d+).* LOCAL:(\d+)", usage
    )
    if found is None:
        raise BackendError(f"cuobjdump names no {kernel}")
    registers, stack, local = map(int, found.groups())
    return registers, stack + local


def _amd_resources(assembly: str) -> tuple[int, int]:
    """Vector registers, and bytes of scratch memory or of registers parked elsewhere."""

    def count(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", assembly)
        return int(found.group(1)) if found else 0

    spilled = max(count("private_segment_fixed_size"), 4 * count("vgpr_spill_count"))
    return count("vgpr_count"), spilled

"""The architectures that kernels are compiled for, and what each allows."""

from dataclasses import dataclass

import torch
from triton.backends.compiler import GPUTarget

from llama2gpu.errors import BackendError


@dataclass(frozen=True)
class Arch:
    """One architecture of GPUs.

    shared: bytes of shared memory that one block may take. registers: 32-bit registers of a
    multiprocessor, and at most 255 (AMD: 512) a thread. warps: of a multiprocessor, at most.
    early: whether to launch kernels before their predecessors have ended, where it can.
    Sources: CUDA C++ Programming Guide, "Compute Capabilities"; AMD's CDNA3 and RDNA3 ISA guides.
    """

    name: str
    shared: int
    registers: int
    warps: int
    early: bool = True

    @property
    def target(self) -> GPUTarget:
        """What Triton compiles for."""
        if self.is_cuda:
            return GPUTarget("cuda", int(self.name.removeprefix("sm_")), 32)
        return GPUTarget("hip", self.name, 64 if self.name.startswith("gfx9") else 32)

    @property
    def is_cuda(self) -> bool:
        """Whether it is NVIDIA's."""
        return self.name.startswith("sm_")

    @property
    def pdl(self) -> bool:
        """Whether a kernel may be launched before its predecessor has ended."""
        return self.early and self.is_cuda and int(self.name.removeprefix("sm_")) >= 90


_KIB = 1 << 10

#: All of them, by name. 64 Ki registers of 4 bytes on each; CDNA has 128 Ki, RDNA3 192 Ki a WGP.
ARCHS = {
    arch.name: arch
    for arch in (
        Arch("sm_80", 163 * _KIB, 1 << 16, 64),
        Arch("sm_86", 99 * _KIB, 1 << 16, 48),
        Arch("sm_89", 99 * _KIB, 1 << 16, 48),
        Arch("sm_90", 227 * _KIB, 1 << 16, 64),
        Arch("sm_100", 227 * _KIB, 1 << 16, 64),
        Arch("sm_120", 99 * _KIB, 1 << 16, 48),
        Arch("gfx942", 64 * _KIB, 1 << 17, 32),
        Arch("gfx1100", 64 * _KIB, 3 << 15, 32),
    )
}

#: Before 8.0 Triton has no tensor cores: CUDA C alone is compiled for these.
OLDER = {
    arch.name: arch
    for arch in (Arch("sm_70", 96 * _KIB, 1 << 16, 64), Arch("sm_75", 64 * _KIB, 1 << 16, 32))
}
EVERY_ARCH = OLDER | ARCHS

#: What plans are made for in the interpreter, which has no architecture of its own.
PLAIN = ARCHS["sm_80"]


def arch_of(device: torch.device) -> Arch:
    """The architecture of a device, or its nearest older relative; `PLAIN` for a CPU.

    Raises `BackendError` for a GPU that Triton's tensor-core kernels don't run on.
    """
    if device.type != "cuda":
        return PLAIN
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        name = str(properties.gcnArchName).split(":")[0]
        return ARCHS["gfx942" if name.startswith("gfx9") else "gfx1100"]
    number = 10 * properties.major + properties.minor
    known = sorted(int(name[3:]) for name in ARCHS if name.startswith("sm_"))
    older = [n for n in known if n <= number]
    if not older:
        raise BackendError(
            f"the Triton kernels need compute capability 8.0, {device} has "
            f"{properties.major}.{properties.minor}: use --backend torch"
        )
    return ARCHS[f"sm_{older[-1]}"]

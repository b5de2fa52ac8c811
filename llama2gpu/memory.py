"""Memory of the machine: what is free for a model, and giving back what is not in use."""

import ctypes
import os
import sys
from functools import cache
from pathlib import Path

import torch

_MEMORY = Path("/proc/meminfo")
#: A container's control group, version 2 and version 1: its folder, the files of its limit and its
#: use, and what the pages of files are called, which count as used and are given up when needed.
_GROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", ("active_file", "inactive_file")),
    (
        "/sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_active_file", "total_inactive_file"),
    ),
)


def free_memory(device: torch.device) -> int | None:
    """Bytes that a program can take on a device; None where the system does not tell.

    On a CPU what Linux calls available, at most what is left of a container's limit.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        most, used = torch.mps.recommended_max_memory(), torch.mps.driver_allocated_memory()
        return int(most) - int(used)
    if _MEMORY.exists():
        left = [_left(*files) for files in _GROUPS]
        return min([_available(), *(x for x in left if x is not None)])
    return _unused_pages()


def give_back() -> None:
    """Returns to the system what the C library keeps of freed memory, where that is glibc."""
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> "ctypes._FuncPointer | None":
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


def _available() -> int:
    for line in _MEMORY.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_MEMORY} has no MemAvailable")


def _left(folder: str, limit: str, used: str, pages: tuple[str, ...]) -> int | None:
    """What is left of a control group's limit; None where there is none."""
    try:
        most, now = (Path(folder, name).read_text().strip() for name in (limit, used))
        rows = [line.split() for line in Path(folder, "memory.stat").read_text().splitlines()]
        files = sum(int(row[1]) for row in rows if len(row) == 2 and row[0] in pages)
        taken = max(int(now) - files, 0)
    except (OSError, ValueError):
        return None
    return max(int(most) - taken, 0) if most.isdecimal() and int(most) < 1 << 60 else None


def _unused_pages() -> int | None:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None

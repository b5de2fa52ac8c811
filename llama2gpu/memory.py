"""Memory of the machine: what is free for a model, and giving back what is not in use."""

import ctypes
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch

_MEMORY = Path("/proc/meminfo")
#: Control groups: those that the process is in, and where they are mounted.
_MEMBERSHIP, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
#: Of a version, the files of a limit and of what is used, and what in `memory.stat` is counted as
#: used but given back when it is needed: pages of files, and the kernel's own caches.
_FILES = {
    2: ("memory.max", "memory.current", ("active_file", "inactive_file", "slab_reclaimable")),
    1: (
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_active_file", "total_inactive_file"),
    ),
}


def free_memory(device: torch.device) -> int | None:
    """Bytes that a program can take on a device; None where the system does not tell.

    On a CPU what Linux calls available, at most what is left of the limits of its containers; on
    a GPU that shares the CPU's memory, at least that, as its driver takes cached files for used.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if torch.cuda.get_device_properties(device).is_integrated and _MEMORY.exists():
            free = max(free, _available())
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        most, used = torch.mps.recommended_max_memory(), torch.mps.driver_allocated_memory()
        return int(most) - int(used)
    if _MEMORY.exists():
        return _available()
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
    available = _numbers(_MEMORY).get("MemAvailable:")
    if available is None:
        raise OSError(f"{_MEMORY} has no MemAvailable")
    left = [_left(folder, version) for folder, version in _groups()]
    return min([available * 1024, *(x for x in left if x is not None)])


def _groups() -> Iterator[tuple[Path, int]]:
    """Folder and version of each group that may limit the process: its own, and those around it."""
    try:
        lines = _MEMBERSHIP.read_text().splitlines()
    except OSError:
        return
    for _, controllers, name in (line.split(":", 2) for line in lines if line.count(":") > 1):
        if controllers and "memory" not in controllers.split(","):
            continue
        root, version = (_GROUPS / "memory", 1) if controllers else (_GROUPS, 2)
        own = root / name.lstrip("/")
        yield from ((folder, version) for folder in (own, *own.parents) if folder >= root)


def _left(group: Path, version: int) -> int | None:
    """What is left of a control group's limit; None where there is none."""
    limit, used, cached = _FILES[version]
    try:
        most, now = (group / limit).read_text().strip(), int((group / used).read_text())
        told = _numbers(group / "memory.stat")
        now -= sum(told.get(name, 0) for name in cached)
    except (OSError, ValueError):
        return None
    return max(int(most) - max(now, 0), 0) if most.isdecimal() and int(most) < 1 << 60 else None


def _numbers(path: Path) -> dict[str, int]:
    """The numbers in a file of a name and a number a line."""
    rows = (line.split() for line in path.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1}


def _unused_pages() -> int | None:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None

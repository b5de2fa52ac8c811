"""What is free, and what is given back."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from llama2gpu import memory
from llama2gpu.measure.memory import tells_memory

CPU = torch.device("cpu")
HOLES = """
import torch
from llama2gpu.measure.memory import _status
from llama2gpu.memory import give_back
kept = []
for _ in range(200):  # what is freed lies between what is kept
    freed = torch.ones(50_000)
    kept.append(torch.ones(1000))
    kept.append(freed)
for i in range(1, len(kept), 2):
    kept[i] = None
del freed
before = _status("RssAnon")
give_back()
print(before - _status("RssAnon"))
"""


def machine(folder: Path, monkeypatch: pytest.MonkeyPatch, member: str) -> Path:
    """A machine with 4 GB to spare, where the process is a member of such a control group."""
    (folder / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   4000000 kB\n")
    (folder / "cgroup").write_text(f"3:cpuset:/other\n{member}\n")
    monkeypatch.setattr(memory, "_MEMORY", folder / "meminfo")
    monkeypatch.setattr(memory, "_MEMBERSHIP", folder / "cgroup")
    monkeypatch.setattr(memory, "_GROUPS", folder)
    return folder


def group(folder: Path, version: int, limit: str, used: str, cached: int = 0) -> None:
    """Writes a control group's files."""
    folder.mkdir(parents=True, exist_ok=True)
    if version == 2:
        names = "memory.max", "memory.current"
        stat = f"anon 5\ninactive_file {cached}\nactive_file 0\nslab_reclaimable 0\n"
    else:
        names = "memory.limit_in_bytes", "memory.usage_in_bytes"
        stat = f"inactive_file 7\ntotal_inactive_file 0\ntotal_active_file {cached}\n"
    for name, value in zip((*names, "memory.stat"), (limit, used, stat), strict=True):
        (folder / name).write_text(value + "\n")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("limit", "used", "cached", "wanted"),
    [
        ("5000000", "2000000", 0, 3_000_000),
        ("5000000", "6000000", 0, 0),
        ("5000000", "5000000", 4_500_000, 4_500_000),  # a model that was just downloaded
        ("5000000", "1000000", 2_000_000, 5_000_000),
        ("max", "2000000", 0, None),
        ("9223372036854771712", "2000000", 0, None),  # version 1 without a limit
        ("none", "2000000", 0, None),
    ],
)
def test_a_container_has_its_own_limit(
    version: int, limit: str, used: str, cached: int, wanted: int | None,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    root = machine(tmp_path, monkeypatch, "4:memory:/" if version == 1 else "0::/")
    group(root / "memory" if version == 1 else root, version, limit, used, cached)
    assert memory.free_memory(CPU) == (4_096_000_000 if wanted is None else wanted)


def test_the_narrowest_group_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = machine(tmp_path, monkeypatch, "0::/batch/job 7/step:0")
    assert memory.free_memory(CPU) == 4_096_000_000
    group(root / "batch/job 7", 2, "9000000", "2000000", 1_000_000)
    group(root / "batch/job 7/step:0", 2, "max", "2000000")
    group(root / "batch/others", 2, "10", "5")
    assert memory.free_memory(CPU) == 8_000_000
    group(root / "batch", 2, "3000000", "2000000")
    assert memory.free_memory(CPU) == 1_000_000


def test_a_gpu_that_shares_memory_with_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(tmp_path, monkeypatch, "0::/")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 9000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 50)
    for integrated, free in ((False, 1020), (True, 4_096_000_020)):
        told = SimpleNamespace(is_integrated=integrated)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, told=told: told)
        assert memory.free_memory(torch.device("cuda")) == free


def test_this_machine() -> None:
    free = memory.free_memory(CPU)
    assert free is None or 1 << 24 < free < 1 << 50


@pytest.mark.skipif(not tells_memory() or memory._trim() is None, reason="needs glibc on Linux")
def test_freed_memory_goes_back() -> None:
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 20_000_000  # of 40

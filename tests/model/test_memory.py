"""What is free, and what is given back."""

import subprocess
import sys
from pathlib import Path

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


@pytest.mark.parametrize(
    ("limit", "used", "wanted"),
    [
        ("5000000", "2000000", 3_600_000),
        ("5000000", "6000000", 0),
        ("5000000", "100", 5_000_000),
        ("max", "2000000", None),
        ("9223372036854771712", "2000000", None),  # version 1 without a limit
        ("none", "2000000", None),
    ],
)
def test_a_container_has_its_own_limit(
    limit: str, used: str, wanted: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   4000000 kB\n")
    (tmp_path / "limit").write_text(limit + "\n")
    (tmp_path / "used").write_text(used + "\n")
    stat = "anon 1400000\nactive_file 200000\ninactive_file 400000\n\nodd\n"
    (tmp_path / "memory.stat").write_text(stat)
    group = (str(tmp_path), "limit", "used", ("active_file", "inactive_file"))
    monkeypatch.setattr(memory, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_GROUPS", (group,))
    assert memory.free_memory(CPU) == (4_096_000_000 if wanted is None else wanted)


def test_this_machine() -> None:
    free = memory.free_memory(CPU)
    assert free is None or 1 << 24 < free < 1 << 50


@pytest.mark.skipif(not tells_memory() or memory._trim() is None, reason="needs glibc on Linux")
def test_freed_memory_goes_back() -> None:
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 20_000_000  # of 40

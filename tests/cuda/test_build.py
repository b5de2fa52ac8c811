"""A launch leaves nothing behind but its results, and libraries are compiled once."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llama2gpu.kernels.cuda import CudaLaunch
from tests.cuda.emulator import Emulator
from tests.cuda.reports import EmulationError

pytestmark = pytest.mark.usefixtures("emulator")
ADD = """
extern "C" __global__ void add(const float* x, float* y, int n) {
    int i = threadIdx.x;
    __syncthreads();
    if (i < n) y[i] = x[i] + 1.0f;
}
"""


def state() -> tuple[str, list[int]]:
    """Which signals are caught, and sizes of this process in pages."""
    status = Path("/proc/self/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return caught, [int(size) for size in Path("/proc/self/statm").read_text().split()]


def test_launches_leave_no_trace(emulator: Emulator) -> None:
    x, y = torch.zeros(300), torch.zeros(300)
    emulator.sources["add"] = ADD
    fine, wrong = (CudaLaunch("add", "add", (1, 1, 1), 512, (x, y, n)) for n in (300, 301))

    def run(times: int) -> None:
        for _ in range(times):
            emulator(fine)
        for _ in range(times // 20):
            with pytest.raises(EmulationError):
                emulator(wrong)

    run(40)
    caught, before = state()
    run(1000)
    after_caught, after = state()
    assert after_caught == caught
    assert after[0] - before[0] < 64, "address space"
    assert after[1] - before[1] < 64, "memory"


def test_processes_share_the_cache(tmp_path: Path) -> None:
    """Two that compile the same at once leave one file, and a third takes it."""
    code = (
        "from tests.cuda.build import build;"
        "print(build('k', 'extern \"C\" __global__ void k(int* x) { *x = 1; }', ()))"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code]
        folder = Path(__file__).parents[2]
        return subprocess.Popen(
            command, env=environment, cwd=folder, stdout=subprocess.PIPE, text=True
        )

    both = [start(), start()]
    found = {one.communicate()[0] for one in both}
    assert [one.returncode for one in both] == [0, 0]
    (path,) = (Path(line.strip()) for line in found)
    made = path.stat()
    assert start().communicate()[0].strip() == str(path)
    assert path.stat().st_ino == made.st_ino, "it was compiled again"
    assert {one.suffix for one in path.parent.iterdir()} == {".so"}
    assert hasattr(ctypes.CDLL(str(path)), "k_call")

"""Memory in use: of the process on the CPU, of the allocator on a GPU."""

import threading
from pathlib import Path
from types import TracebackType

import torch

_STATUS = Path("/proc/self/status")


def peak_memory(device: torch.device) -> int | None:
    """Most bytes held so far: by PyTorch on a CUDA or MPS device, else resident in the process.

    None where the system does not tell. A mapped checkpoint's pages count as resident.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if device.type == "mps":
        return int(torch.mps.driver_allocated_memory())
    if _STATUS.exists():
        return _status("VmHWM")
    try:
        import resource
    except ImportError:  # Windows
        return None
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # bytes on macOS


def tells_memory() -> bool:
    """Whether the system tells a process's anonymous memory, as Linux does."""
    return _STATUS.exists()


class AnonymousPeak:
    """Watches the process's anonymous memory while it is entered (Linux).

    peak: most bytes above the level at entry. File-backed pages of a mapped checkpoint do not
    count. It samples every `interval` seconds, so a shorter spike can be missed.
    """

    def __init__(self, interval: float = 0.002) -> None:
        self.interval, self.peak = interval, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "AnonymousPeak":
        self._level = _status("RssAnon")
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.look()
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self.interval):
            self.look()

    def look(self) -> int:
        """Samples now; gives the peak so far."""
        self.peak = max(self.peak, _status("RssAnon") - self._level)
        return self.peak


def _status(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {field}")

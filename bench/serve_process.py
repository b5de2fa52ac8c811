"""The server that `bench.serve` loads: a process, its memory and what it tells."""

import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import socket
from types import TracebackType
from typing import Any, Self

import click

from bench.serve_client import KEY

#: Sequences that run at once, and with those that may wait beside them.
BATCH, ROOM = 64, 64 + 128
ROOT = Path(__file__).resolve().parents[1]


class Process:
    """`llama2gpu serve` of the shipped model, or of random weights of a shape, on a free port."""

    def __init__(self, folder: Path, options: list[str], shape: str | None) -> None:
        with socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        module = ["llama2gpu", "serve", "-q"] if shape is None else ["bench.serve_shape"]
        command = [
            sys.executable,
            "-m",
            *module,
            "--port",
            str(self.port),
            "--max-batch",
            str(BATCH),
        ]
        command += ["--jobs", str(folder / "jobs.sqlite"), *options]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"LLAMA2GPU_API_KEY": KEY}
        )

    def __enter__(self) -> Self:
        while self._get("/ready") is None:
            if self._process.poll() is not None:
                raise click.ClickException("the server did not start")
            time.sleep(0.2)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """Asks it to end; its exit status."""
        self._process.terminate()
        return self._process.wait(timeout=60)

    @property
    def context(self) -> int:
        """Positions of a sequence."""
        body = json.dumps({"prompt": "a"}).encode()
        return int(json.loads(self._get("/tokenize", body) or "{}")["max_model_len"])

    def metric(self, name: str) -> float:
        """One of those without labels."""
        for line in (self._get("/metrics") or "").splitlines():
            if line.startswith(f"llama2gpu_{name} "):
                return float(line.split()[1])
        raise click.ClickException(f"the server tells no llama2gpu_{name}")

    def rest(self) -> dict[str, Any]:
        """What is left a second after a load."""
        time.sleep(1)
        names = ("pages", "pages_used", "sequences_running", "sequences_waiting")
        found = {f"{name}_after": self.metric(name) for name in names}
        return found | {"healthy_after": self._get("/health") is not None}

    @contextmanager
    def watched_memory(self, seconds: float) -> Iterator[list[int]]:
        """Its bytes in memory as long as the block lasts, at its begin and each so many seconds."""
        found, over = [self._memory()], threading.Event()

        def watch() -> None:
            while not over.wait(seconds):
                found.append(self._memory())

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield found
        finally:
            over.set()
            thread.join()
            found.append(self._memory())

    def _memory(self) -> int:
        resident = Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]
        return int(resident) * os.sysconf("SC_PAGE_SIZE")

    def _get(self, path: str, body: bytes | None = None) -> str | None:
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        url = f"http://127.0.0.1:{self.port}{path}"
        try:
            with urllib.request.urlopen(
                urllib.request.Request(url, body, headers), timeout=30
            ) as answer:
                return str(answer.read().decode())
        except (urllib.error.URLError, ConnectionError):
            return None

"""A server as a process of its own, on a free port of this machine."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[2]
PAUSE, PATIENCE = 0.1, 1200


class Server:
    """`llama2gpu serve` of the shipped model in float32, greedy jobs."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.options = folder, options
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "log"
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "llama2gpu", "serve", "--port", str(self.port)]
        command += ["--device", "cpu", "--dtype", "fp32", "--temp", "0"]
        command += ["--jobs", str(self.folder / "jobs.sqlite"), *self.options]
        with self.log.open("ab") as log:
            return subprocess.Popen(command, cwd=ROOT, stderr=log, env=dict(os.environ))

    def wait_until_ready(self) -> "Server":
        for _ in range(PATIENCE):
            assert self.process.poll() is None, self.log.read_text()
            try:
                if httpx.get(f"{self.url}/ready").status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            sleep(PAUSE)
        raise AssertionError("the server is not ready")

    def restart(self) -> "Server":
        self.process = self._start()
        return self.wait_until_ready()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, timeout=120, **more)

    def get(self, path: str, **more: Any) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=120, **more)

    def complete(self, prompt: object, **more: object) -> str:
        body = {"prompt": prompt, "temperature": 0, "max_tokens": 40} | more
        answer = self.post("/v1/completions", body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["text"])

    def metric(self, name: str) -> float:
        """A metric by its name and labels, as Prometheus' text has it; 0 where it is not yet."""
        for line in self.get("/metrics").text.splitlines():
            if line.startswith(f"llama2gpu_{name} "):
                return float(line.split()[-1])
        return 0.0

    def wait_for(self, name: str, value: float) -> None:
        for _ in range(PATIENCE):
            if self.metric(name) == value:
                return
            sleep(PAUSE)
        raise AssertionError(f"{name} is {self.metric(name)}, not {value}")


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Server]:
    server = Server(folder, *options)
    try:
        yield server.wait_until_ready()
    finally:
        server.kill()

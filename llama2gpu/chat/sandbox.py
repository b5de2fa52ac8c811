"""Asking the process that renders chat templates (`worker`); it starts when first needed."""

import atexit
import json
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from threading import Lock, Timer
from typing import Any

from llama2gpu.errors import RequestError
from llama2gpu.files import one_line

WORKER = Path(__file__).with_name("worker.py")
#: The worker's own bound is on processor time; this one is for systems that have none.
WALL_SECONDS = 120.0
REMEDY = "give another with --chat-template"


class Sandbox:
    """The process, from one request to the next; threads may share it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = Lock()

    def render(self, template: str, variables: dict[str, Any], limit: int) -> str:
        """A template's text, of at most `limit` characters; variables are what JSON can hold.

        Raises `RequestError` where the template is damaged, refuses the variables, or takes more
        than its time, memory or length.
        """
        asked = {"template": template, "variables": variables, "limit": limit}
        with self._lock:
            try:
                reply = self._ask(json.dumps(asked).encode() + b"\n", 12 * limit + 8192)
            except BaseException:
                self.stop()
                raise
        if "refused" in reply:
            reason = one_line(reply["refused"], 300)
            raise RequestError(f"the chat template takes no such conversation: {reason}")
        if "error" in reply:
            raise _unusable(reply["error"])
        return str(reply["text"])

    def _ask(self, line: bytes, most: int) -> dict[str, Any]:
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        timer = Timer(WALL_SECONDS, process.kill)
        timer.start()
        try:
            process.stdin.write(line)
            process.stdin.flush()
            answer = process.stdout.readline(most)
        except BrokenPipeError:
            answer = b""
        finally:
            timer.cancel()
        try:
            reply = json.loads(answer)
        except ValueError:
            raise _unusable(self._died()) from None
        return dict(reply)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.stop()
        if find_spec("jinja2") is None:
            raise RequestError("chat templates need jinja2: pip install jinja2")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        try:
            # -P: the modules beside it are none of the standard library's; a session of its own:
            # Control-C is not for it
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(WORKER)],
                start_new_session=True,
                **pipes,  # type: ignore[call-overload]
            )
        except OSError as error:
            raise RequestError(
                f"can't start {sys.executable} to render the chat template: {error.strerror}"
            ) from None
        assert self._process is not None
        return self._process

    def _died(self) -> str:
        """Why there is no answer."""
        assert self._process is not None
        self._process.kill()  # where it has not ended: it answered nonsense
        status = self._process.wait()
        if status == -getattr(signal, "SIGPROF", 0):
            return "it takes too long"
        return "it takes too long or too much memory"

    def stop(self) -> None:
        """Ends the process; the next request starts another."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except BrokenPipeError:  # a request that it never took
                pass


def _unusable(why: str) -> RequestError:
    return RequestError(f"the chat template can't be used: {one_line(why, 300)}; {REMEDY}")


#: The one that all conversations of this program share.
SANDBOX = Sandbox()
atexit.register(SANDBOX.stop)

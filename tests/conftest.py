"""What several test folders share."""

import os
import signal
from pathlib import Path

import pytest

os.environ["LLAMA2GPU_NO_CHOSEN"] = "1"  # what the user's machine was found to do best

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # a background job ignores Control-C and hands that down to the programs that tests interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def stories() -> Path:
    """The folder of the published stories260K."""
    root = os.environ.get("LLAMA2GPU_TEST_MODELS")
    if not root or not (Path(root) / "stories260K" / "stories260K.bin").is_file():
        pytest.skip("LLAMA2GPU_TEST_MODELS names no folder that holds stories260K")
    return Path(root) / "stories260K"

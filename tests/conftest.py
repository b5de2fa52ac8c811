"""What several test folders share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def stories() -> Path:
    """The folder of the published stories260K."""
    root = os.environ.get("LLAMA2GPU_TEST_MODELS")
    if not root or not (Path(root) / "stories260K" / "stories260K.bin").is_file():
        pytest.skip("LLAMA2GPU_TEST_MODELS names no folder that holds stories260K")
    return Path(root) / "stories260K"

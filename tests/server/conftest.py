"""Servers that several tests share."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from llama2gpu.api import Llama
    from tests.server.running import Server


def require() -> None:
    for package in ("fastapi", "uvicorn", "pydantic", "prometheus_client", "httpx"):
        pytest.importorskip(package)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Server]":
    """One that all may ask and that nobody stops."""
    require()
    from tests.server.running import serving

    with serving(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="session")
def slow(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Server]":
    """One that takes seconds for a long answer and has room for eight sequences."""
    require()
    from tests.server.running import serving

    options = "--no-kv-cache", "--max-batch", "4", "--queue", "4"
    with serving(tmp_path_factory.mktemp("slow"), *options) as running:
        yield running


@pytest.fixture(scope="session")
def alone() -> "Llama":
    """The same model in this process."""
    import llama2gpu

    return llama2gpu.load(device="cpu", dtype="fp32")

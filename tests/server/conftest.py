"""Servers that several tests share."""

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from llama2gpu.api import Llama
    from tests.server.running import Server

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


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


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    with playwright.sync_playwright() as play:
        try:
            made = play.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium starts here: {str(error).splitlines()[0]}")
        yield made
        made.close()


@pytest.fixture
def page(browser: Any, server: "Server") -> Iterator[Any]:
    """The page with nothing kept, and whatever it complains of."""
    context = browser.new_context(viewport={"width": 900, "height": 700})
    made = context.new_page()
    made.complaints = []
    made.on("pageerror", lambda error: made.complaints.append(str(error)))
    made.on("console", lambda m: made.complaints.append(m.text) if m.type == "error" else None)
    made.goto(server.url)
    yield made
    context.close()

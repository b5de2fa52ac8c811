"""What tests of kernels share."""

import pytest

from tests.ops.unwritten import make_empty_nan


@pytest.fixture
def _unwritten_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """An output that a kernel forgets to write is NaN."""
    make_empty_nan(monkeypatch)

"""What tests of kernels share."""

from typing import Any

import pytest
import torch


@pytest.fixture
def _unwritten_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.empty` gives NaN, so that an output that a kernel forgets to write shows."""
    plain = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        made: torch.Tensor = plain(*args, **kwargs)
        return made.fill_(torch.nan if made.is_floating_point() else -1)

    monkeypatch.setattr(torch, "empty", poisoned)

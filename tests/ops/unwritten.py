"""Making what a kernel forgets to write show."""

from typing import Any

import pytest
import torch


def make_empty_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.empty` gives NaN, or −1 where there is none."""
    plain = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        made: torch.Tensor = plain(*args, **kwargs)
        return made.fill_(torch.nan if made.is_floating_point() else -1)

    monkeypatch.setattr(torch, "empty", poisoned)

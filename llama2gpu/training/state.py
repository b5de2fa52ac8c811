"""What a training needs to go on after a kill: written beside, then renamed."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from llama2gpu.errors import RequestError
from llama2gpu.training.files import write_whole

NAME = "state.pt"


def save_state(
    work: Path,
    step: int,
    arguments: Mapping[str, Any],
    net: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Writes the state after `step` steps; the one before stays until this one is whole."""
    written = io.BytesIO()
    state = {
        "step": step,
        "arguments": dict(arguments),
        "net": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
    }
    torch.save(state, written)
    write_whole(work / NAME, written.getvalue())


def load_state(
    work: Path,
    arguments: Mapping[str, Any],
    net: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
) -> int:
    """Takes up the state in `work` and returns its step; 0 where none was saved yet.

    Raises `RequestError` where it is damaged, or was made with other arguments.
    """
    path = work / NAME
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        check_arguments(state["arguments"], arguments)
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        return int(state["step"])
    except RequestError:
        raise
    except Exception as error:
        raise RequestError(f"{path} is damaged: start again with --overwrite") from error


def check_arguments(saved: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raises `RequestError` that names the arguments that differ."""
    names = [name for name in given if saved.get(name) != given[name]]
    if names:
        told = ", ".join(f"{name} was {saved.get(name)}, is {given[name]}" for name in names)
        raise RequestError(f"can't resume with other arguments: {told}")

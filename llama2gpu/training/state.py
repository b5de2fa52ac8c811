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
    work: Path, step: int, net: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Writes the state after `step` steps; the one before stays until this one is whole."""
    written = io.BytesIO()
    state = {"step": step, "net": net.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, written)
    write_whole(work / NAME, written.getvalue())


def load_state(work: Path, net: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Takes up the state in `work` and returns its step; 0 where none was saved yet.

    Raises `RequestError` where it is damaged, or can't be read for another reason.
    """
    path = work / NAME
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])
    except Exception as error:
        if _no_memory(error):
            raise RequestError(f"no memory for {path}: free some, then --resume") from error
        if isinstance(error, OSError) and error.errno:
            told = f"can't read {path}: {error.strerror}; mend that, then --resume"
            raise RequestError(told) from error
        raise RequestError(f"{path} is damaged: start again with --overwrite") from error


def _no_memory(error: Exception) -> bool:
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or "can't allocate memory" in str(error)


def check_arguments(saved: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raises `RequestError` that names the arguments that differ."""
    names = [name for name in given if saved.get(name) != given[name]]
    if names:
        told = ", ".join(_difference(name, saved.get(name), given[name]) for name in names)
        raise RequestError(f"can't resume with other arguments: {told}")


def _difference(name: str, saved: Any, given: Any) -> str:
    if name == "tied":
        return f"--untied was {not saved}, is {not given}"
    shown = "the text" if name == "text" else "--" + name.replace("_", "-")
    return f"{shown} was {saved}, is {given}"

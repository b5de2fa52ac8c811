"""How fast each backend decoded on this device, as `llama2gpu kernels choose` measured it.

One file for a device and these versions of everything that computes, in the user's cache. It holds
rates alone, in tokens/s; the order in which "auto" tries the backends is derived from them.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from llama2gpu.kernels.user_cache import cache_folder, check_writable, warn_once, write_whole

#: An environment variable that leaves all that was measured out of account.
NO_CHOSEN = "LLAMA2GPU_NO_CHOSEN"
FORMAT = 1
#: Bytes that a file may have.
LIMIT = 1 << 16
#: Tokens a second that no device reaches.
MOST = 1e15
#: Forms of the weights, of which each has a choice of its own.
KINDS = ("dense", "int8", "int4")
#: Packages of which another version may be faster or slower.
PACKAGES = ("llama2gpu", "torch", "triton", "cupy-cuda12x", "cupy-cuda13x", "numpy")


class Measured(NamedTuple):
    """Rates of decoding by backend, in tokens/s, of a model, and the day (ISO)."""

    rates: Mapping[str, float]
    model: str
    date: str

    @property
    def order(self) -> list[str]:
        """The backends, the fastest first."""
        return sorted(self.rates, key=lambda name: -self.rates[name])


def chosen_path(device: torch.device) -> Path:
    """The file of a device. Raises `RuntimeError` where the user has no home."""
    name = re.sub(r"[^a-z0-9]+", "-", hardware(device).lower()).strip("-")
    digest = hashlib.sha256(repr(sorted(versions().items())).encode()).hexdigest()[:12]
    return cache_folder() / "chosen" / f"{name}-{digest}.json"


def recall(device: torch.device) -> dict[str, Measured]:
    """What was measured on a device by kind of weights; nothing where nothing was.

    A file that can't be used is told in one line, once.
    """
    return {} if os.environ.get(NO_CHOSEN) else _known(device)


def _known(device: torch.device) -> dict[str, Measured]:
    try:
        path = chosen_path(device)
        return _read(path) if path.exists() else {}
    except RuntimeError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        warn_once(
            f"llama2gpu: {path} can't be used ({error}): delete it, or run `llama2gpu kernels "
            "choose` again; until then auto goes by its rule"
        )
        return {}


def check_kept(device: torch.device) -> None:
    """Raises what `remember` would where nothing can be kept, before there is anything to keep."""
    check_writable(chosen_path(device).parent)


def remember(device: torch.device, found: Mapping[str, Measured]) -> Path:
    """Writes what was measured, beside what is known of other kinds of weights.

    Raises `OSError` where the system refuses, and `RuntimeError` where the user has no home.
    """
    path = chosen_path(device)
    kinds = {kind: measured._asdict() for kind, measured in (_known(device) | dict(found)).items()}
    content = {
        "format": FORMAT, "device": hardware(device), "versions": versions(), "kinds": kinds,
    }  # fmt: skip
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())
    return path


def forget(device: torch.device) -> bool:
    """Removes what was measured on a device; whether there was anything."""
    path = chosen_path(device)
    known = path.exists()
    path.unlink(missing_ok=True)
    return known


def hardware(device: torch.device) -> str:
    """The kind of a device, by which measurements are told apart."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = {"cpu": f"CPU, {torch.backends.cpu.get_cpu_capability()}", "mps": "Apple GPU"}
    return names.get(device.type, str(device))


@cache
def versions() -> dict[str, str]:
    """The installed ones of `PACKAGES`, and CUDA's or ROCm's."""
    found = {"cuda": str(torch.version.cuda or torch.version.hip)}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _read(path: Path) -> dict[str, Measured]:
    if not path.is_file():  # a pipe would be waited for
        raise ValueError("it is no file")
    with path.open("rb") as file:
        data = file.read(LIMIT + 1)
    if len(data) > LIMIT:
        raise ValueError("it is too large")
    content = json.loads(data)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError("it has another format")
    kinds = content.get("kinds")
    if not isinstance(kinds, dict) or not set(kinds) <= set(KINDS):
        raise ValueError("it is of other weights")
    return {kind: _measured(raw) for kind, raw in kinds.items()}


def _measured(raw: Any) -> Measured:
    rates = raw.get("rates") if isinstance(raw, dict) else None
    if not isinstance(rates, dict) or not rates:
        raise ValueError("it lacks rates")
    if not all(isinstance(r, int | float) and 0 < r < MOST for r in rates.values()):
        raise ValueError("a rate is no number above 0")
    model, date = raw.get("model"), raw.get("date")
    if not isinstance(model, str) or not isinstance(date, str):
        raise ValueError("it lacks the model or the date")
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", date):
        raise ValueError("it lacks the date")
    if not all(text.isprintable() for text in (model, *rates)):
        raise ValueError("it has a name that can't be printed")
    return Measured(rates, model, date)

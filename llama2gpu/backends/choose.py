"""Finding a backend by name or by device; a backend is resolved once, into an object."""

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points

import torch

from llama2gpu.backends.base import OPS, Backend
from llama2gpu.backends.route import borrow
from llama2gpu.errors import BackendError

ENTRY_POINTS = "llama2gpu.backends"

BUILT_IN = {
    "torch": "llama2gpu.backends.torch:TorchBackend",
    "numpy": "llama2gpu.backends.numpy:NumpyBackend",
}

#: What `auto` tries, in order, by kind of device ("cuda-old": compute capability below 8.0).
AUTO_ORDER = {
    "cuda": ("triton", "cupy", "torch"),
    "rocm": ("triton", "torch"),
    "cuda-old": ("cupy", "torch"),
    "mps": ("torch",),
    "cpu": ("torch",),
}


def available() -> dict[str, str]:
    """Names of all backends, built in or plugged in, and the `module:class` behind each."""
    plugged = {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}
    return {**plugged, **BUILT_IN}


def backend_class(name: str) -> type[Backend]:
    """The class behind a name. Raises `BackendError` where there is none or it can't be loaded."""
    known = available()
    if name not in known:
        raise BackendError(f"unknown backend {name!r}: choose auto, {', '.join(sorted(known))}")
    module, _, attribute = known[name].partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise BackendError(f"backend {name!r} ({known[name]}) can't be loaded: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Backend)):
        raise BackendError(f"backend {name!r} ({known[name]}) is no subclass of Backend")
    return found


def resolve_device(device: str) -> torch.device:
    """The device of that name; "auto" is CUDA, else MPS, else the CPU.

    Raises `BackendError` for a name that PyTorch does not know or a device that is not there.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        place = torch.device("meta")
    counts = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }
    if place.type not in counts:
        raise BackendError(f"unknown device {device!r}: choose auto, cpu, cuda, cuda:N or mps")
    if (place.index or 0) >= counts[place.type]:
        raise BackendError(
            f"device {device!r} is not there: PyTorch {torch.__version__} sees "
            f"{counts[place.type]} of that kind; --device auto takes what is there"
        )
    return torch.device("cuda", place.index or 0) if place.type == "cuda" else place


def device_kind(device: torch.device) -> str:
    """The key of `AUTO_ORDER` for a device."""
    if device.type != "cuda":
        return device.type if device.type in AUTO_ORDER else "cpu"
    if torch.version.hip:
        return "rocm"
    return "cuda" if torch.cuda.get_device_capability(device) >= (8, 0) else "cuda-old"


def choose_backend(
    name: str = "auto", device: str = "auto", borrowed: Mapping[str, str] | None = None
) -> Backend:
    """The backend `name` on `device`, with single ops borrowed from others (`{op: backend}`).

    "auto" takes the first of `AUTO_ORDER` that runs. A backend that was asked for by name and
    can't run raises `BackendError` with the reason; nothing falls back.
    """
    place = resolve_device("cpu" if (name, device) == ("numpy", "auto") else device)
    if name == "auto":
        order = [n for n in AUTO_ORDER[device_kind(place)] if n in available()]
        runs = [n for n in order if backend_class(n).probe(place).ok]
        name = (runs or order)[0]
    backend = _started(name, place)
    others: dict[str, Backend] = {}
    for op, other in (borrowed or {}).items():
        if op not in OPS:
            raise BackendError(f"unknown op {op!r}: choose {', '.join(OPS)}")
        others[op] = _started(other, place)
    return borrow(backend, others) if others else backend


def _started(name: str, device: torch.device) -> Backend:
    found = backend_class(name)
    probe = found.probe(device)
    if not probe.ok:
        raise BackendError(f"backend {name!r} can't run here: {probe.detail}")
    return found(device)

"""Finding a backend by name or by device; a backend is resolved once, into an object."""

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points

import torch

from llama2gpu.backends.base import OPS, Backend, Probe
from llama2gpu.backends.chosen import recall
from llama2gpu.backends.route import borrow
from llama2gpu.errors import BackendError

ENTRY_POINTS = "llama2gpu.backends"

BUILT_IN = {
    "torch": "llama2gpu.backends.torch:TorchBackend",
    "triton": "llama2gpu.backends.triton:TritonBackend",
    "cupy": "llama2gpu.backends.cupy:CupyBackend",
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


def available() -> dict[str, EntryPoint]:
    """All backends by name, built in or plugged in, and where each is found."""
    plugged = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    own = {name: EntryPoint(name, where, ENTRY_POINTS) for name, where in BUILT_IN.items()}
    return {**plugged, **own}


def backend_class(name: str) -> type[Backend]:
    """The class behind a name. Raises `BackendError` where there is none or it can't be loaded."""
    known = available()
    if name not in known:
        raise BackendError(f"unknown backend {name!r}: choose auto, {', '.join(sorted(known))}")
    label = f"backend {name!r} ({known[name].value})"
    try:
        found = known[name].load()
    except Exception as error:  # somebody else's code
        raise BackendError(f"{label} can't be loaded: {error!r}: mend or remove it") from error
    if not (isinstance(found, type) and issubclass(found, Backend)):
        raise BackendError(f"{label} is no subclass of Backend: mend or remove it")
    if found.__abstractmethods__:
        lacking = ", ".join(sorted(found.__abstractmethods__))
        raise BackendError(f"{label} lacks {lacking}: mend or remove it")
    return found


def probe(name: str, device: torch.device) -> Probe:
    """Whether the backend of that name runs on the device, whatever its own code does."""
    try:
        return backend_class(name).probe(device)
    except BackendError as error:
        return Probe(False, str(error))
    except Exception as error:  # somebody else's code
        return Probe(False, f"its probe failed: {error!r}")


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


def auto_candidates(device: torch.device, kind: str = "dense") -> dict[str, Probe]:
    """What "auto" tries on a device, in order, up to the first that runs; no other is loaded."""
    found: dict[str, Probe] = {}
    for name in auto_order(device, kind):
        found[name] = probe(name, device)
        if found[name].ok:
            break
    return found


def auto_order(device: torch.device, kind: str = "dense") -> list[str]:
    """The backends that "auto" may take on a device, the one to be preferred first.

    Those that were measured there with that kind of weights, one of `chosen.KINDS`, the fastest
    first; then those of `AUTO_ORDER`.
    """
    known, found = available(), recall(device)
    measured = found[kind].order if kind in found else []
    return [n for n in dict.fromkeys((*measured, *AUTO_ORDER[device_kind(device)])) if n in known]


def choose_backend(
    name: str = "auto",
    device: str = "auto",
    borrowed: Mapping[str, str] | None = None,
    kind: str = "dense",
) -> Backend:
    """The backend `name` on `device`, with single ops borrowed from others (`{op: backend}`).

    "auto" takes the first of `auto_order` that runs; kind: of the weights, as that takes it. A
    backend that was asked for by name and can't run raises `BackendError` with the reason; nothing
    falls back.
    """
    place = resolve_device("cpu" if (name, device) == ("numpy", "auto") else device)
    if name == "auto":
        found = auto_candidates(place, kind)
        runs = [n for n, (ok, _) in found.items() if ok]
        name = (runs or list(found))[0]
    backend = _started(name, place)
    others: dict[str, Backend] = {}
    for op, other in (borrowed or {}).items():
        if op not in OPS:
            raise BackendError(f"unknown op {op!r}: choose {', '.join(OPS)}")
        others[op] = _started(other, place)
    return borrow(backend, others) if others else backend


def _started(name: str, device: torch.device) -> Backend:
    found, (ok, detail) = backend_class(name), probe(name, device)
    if not ok:
        raise BackendError(f"backend {name!r} can't run here: {detail}")
    return found(device)

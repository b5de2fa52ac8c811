"""Who computes: the backends by name, how one is chosen, and how ops are borrowed."""

from llama2gpu.backends.choose import (
    AUTO_ORDER,
    auto_candidates,
    auto_order,
    available,
    backend_class,
    choose_backend,
    probe,
    resolve_device,
)
from llama2gpu.backends.route import borrow, serving

__all__ = [
    "AUTO_ORDER",
    "auto_candidates",
    "auto_order",
    "available",
    "backend_class",
    "borrow",
    "choose_backend",
    "probe",
    "resolve_device",
    "serving",
]

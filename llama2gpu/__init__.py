"""Llama-family models on kernels that a person can read, check and measure.

>>> import llama2gpu
>>> llama = llama2gpu.load("stories15M.bin")
>>> print(llama.generate("Once upon a time", max_tokens=100).text)
>>> for piece in llama.stream("The little dragon"):
...     print(piece, end="", flush=True)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama2gpu.api import Completion, Generation, Llama, load
    from llama2gpu.errors import Llama2GPUError
    from llama2gpu.sampling import SamplingParams

_HOMES = {
    "Completion": "api",
    "Generation": "api",
    "Llama": "api",
    "load": "api",
    "Llama2GPUError": "errors",
    "SamplingParams": "sampling",
}

__all__ = ["Completion", "Generation", "Llama", "Llama2GPUError", "SamplingParams", "load"]


def __getattr__(name: str) -> Any:
    """Public names, imported when first asked for, so that the command line starts at once."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

"""A model of a checkpoint on a backend: what its weights will be, and its context."""

import logging

import torch

from llama2gpu.backends.base import Backend
from llama2gpu.checkpoints import Checkpoint
from llama2gpu.checkpoints.weights import Progress, Quantizer, load_weights
from llama2gpu.config import LIMITS
from llama2gpu.errors import RequestError
from llama2gpu.model import Model
from llama2gpu.quant import QuantSpec
from llama2gpu.weights import DTYPES


def build_model(
    checkpoint: Checkpoint,
    backend: Backend,
    dtype: str = "auto",
    context: int | None = None,
    progress: Progress = lambda done, total: None,
    quantizer: Quantizer | None = None,
) -> Model:
    """The checkpoint's weights, quantized if asked, placed on the backend."""
    kind = weight_type(checkpoint, backend.device, dtype)
    with backend.current():
        weights = load_weights(
            checkpoint, kind, backend.prepare, backend.device, progress, quantizer
        )
    return Model(checkpoint.config, weights, backend, kind, context)


def weight_kind(checkpoint: Checkpoint, spec: QuantSpec | None = None) -> str:
    """What most matrices will be: "dense", "int8" or "int4"."""
    if spec is not None:
        return spec.kind
    return checkpoint.kind("layers.0.wq")


def weight_type(checkpoint: Checkpoint, device: torch.device, dtype: str) -> torch.dtype:
    """The type of dense matrices: one of `DTYPES`, or what "auto" is."""
    return auto_dtype(checkpoint.dtype, device) if dtype == "auto" else DTYPES[dtype]


def auto_dtype(stored: torch.dtype, device: torch.device) -> torch.dtype:
    """CPU: as stored. CUDA: bfloat16, or float16 below compute capability 8.0. MPS: float16."""
    if device.type == "cuda":
        recent = torch.version.hip or torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if recent else torch.float16
    return torch.float16 if device.type == "mps" else stored


def check_context(context: int | None, checkpoint: Checkpoint) -> None:
    """Refuses a context that none can have, and warns of one that the model did not learn."""
    own = checkpoint.config.context
    most = LIMITS["context"]
    if context is not None and not 0 < context <= most:
        raise RequestError(
            f"a context of {context} was asked for: give 1 to {most}; the model has {own}"
        )
    if context is not None and context > own:
        logging.getLogger("llama2gpu").warning(
            "llama2gpu: a context of %d was asked for, but %r has one of %d: what it writes past "
            "that may make no sense; RoPE scaling (--rope-scaling) stretches it",
            context,
            checkpoint.path.name,
            own,
        )

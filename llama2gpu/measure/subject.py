"""What is measured: a model on a backend, of random weights or from a checkpoint."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from llama2gpu.api import load
from llama2gpu.backends import choose_backend
from llama2gpu.build import auto_dtype, build_model
from llama2gpu.checkpoints import RandomCheckpoint, open_checkpoint
from llama2gpu.config import Config
from llama2gpu.measure.memory import AnonymousPeak, tells_memory
from llama2gpu.measure.shapes import SHAPES
from llama2gpu.model import Model
from llama2gpu.quant.spec import parse_spec
from llama2gpu.weights import DTYPES, dtype_name


@dataclass(frozen=True)
class Subject:
    """A model to measure.

    model: a key of `SHAPES`, whose weights are random, or else a checkpoint as `api.load` takes it.
    dtype "auto" of a shape is bfloat16, or what the device takes in its place. quant: as
    `quant.spec.parse_spec` reads it, or "none"; random weights are made in that form.
    threads: CPU threads to compute with; None leaves them as they are.
    """

    model: str
    backend: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    quant: str = "none"
    threads: int | None = None

    @property
    def is_shape(self) -> bool:
        """Whether the weights are random."""
        return self.model in SHAPES

    @property
    def name(self) -> str:
        """The shape, or the last part of a checkpoint's path or name."""
        return self.model if self.is_shape else Path(self.model).resolve().name

    @property
    def title(self) -> str:
        """The name and the form of the weights."""
        parts = [self.name] + [x for x in (self.dtype, self.quant) if x not in ("auto", "none")]
        return " ".join(parts)

    def open(self, context: int) -> Model:
        """The model with room for sequences of `context` tokens, past the trained ones too."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if self.is_shape:
            return self._random(context)
        llama = load(
            self.model,
            backend=self.backend,
            device=self.device,
            dtype=self.dtype,
            quant=self.quant,
        )
        model = llama.engine.model
        model.context = max(context, model.context)
        return model

    def open_folder(self, folder: Path) -> Model:
        """A checkpoint that lies in a folder, in the type that is stored; it needs no tokenizer."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        server, checkpoint = choose_backend(self.backend, self.device), open_checkpoint(folder)
        return build_model(checkpoint, server, dtype_name(checkpoint.dtype))

    def random(self, device: torch.device) -> RandomCheckpoint:
        """Random weights of the shape, in the form that is asked for on a device."""
        kind = auto_dtype(torch.bfloat16, device)
        kind = kind if self.dtype == "auto" else DTYPES[self.dtype]
        spec = None if self.quant == "none" else parse_spec(self.quant)
        return RandomCheckpoint(SHAPES[self.model], kind, quant=spec)

    def _random(self, context: int) -> Model:
        server = choose_backend(self.backend, self.device)
        checkpoint = self.random(server.device)
        context = max(context, checkpoint.config.context)
        return build_model(checkpoint, server, dtype_name(checkpoint.dtype), context)


def weight_memory(model: Model) -> int:
    """Bytes of all matrices as the backend keeps them."""
    weights = model.weights
    return int(weights.nbytes + (0 if model.config.tied else weights.embed.nbytes))


def matrix_parameters(config: Config) -> int:
    """Weights that every token of a prompt is multiplied with: the layers' matrices."""
    embeddings = (1 if config.tied else 2) * config.vocab * config.dim
    return config.parameters - embeddings - (2 * config.layers + 1) * config.dim


class Memory:
    """Most bytes taken since the block began: anonymous ones, or the device's allocator's."""

    def __init__(self, device: torch.device, watch: AnonymousPeak | None) -> None:
        self.device, self._watch = device, watch

    @property
    def peak(self) -> int | None:
        """The peak so far; None where the system does not tell."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        return None if self._watch is None else self._watch.look()


@contextmanager
def watching(device: torch.device) -> Iterator[Memory]:
    """Watches the memory that the block takes on a device, or in the process on the CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    if device.type != "cpu" or not tells_memory():
        yield Memory(device, None)
        return
    with AnonymousPeak() as watch:
        yield Memory(device, watch)

"""A whole model of random weights, measured: prefill, decode, memory, beside the device's limits.

Each round measures the limits and then the model, and shares are taken round by round, so that
they hold where the machine's speed drifts.
"""

import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from importlib import metadata

import torch

from llama2gpu.api import DTYPES, auto_dtype, build_model
from llama2gpu.backends import choose_backend
from llama2gpu.backends.matrix import Matrix
from llama2gpu.checkpoints import RandomCheckpoint, tensor_shapes
from llama2gpu.config import Config
from llama2gpu.engine import Engine, Stats
from llama2gpu.measure.limits import matmul_peak, read_bandwidth
from llama2gpu.measure.memory import AnonymousPeak
from llama2gpu.measure.shapes import SHAPES
from llama2gpu.quant.spec import parse_spec
from llama2gpu.request import Request
from llama2gpu.sampling import SamplingParams

#: Another engine: its name, and its rates of prefill and decode, measured when called.
Peer = tuple[str, Callable[[], tuple[float, float]]]


@dataclass(frozen=True)
class Round:
    """One measurement: rates in tokens/s, peaks in bytes/s and flop/s; a peer's rates, if any."""

    prefill_rate: float
    decode_rate: float
    read_peak: float
    matmul_peak: float
    peer_prefill_rate: float | None = None
    peer_decode_rate: float | None = None


@dataclass(frozen=True)
class DecodeResult:
    """What was measured, on what.

    weight_bytes: read by each decoded token. prompt_flops: of the matrices, a prompt token.
    quant: as `quant.spec.parse_spec` reads it, or "none"; the weights are random ones of that form.
    memory_ratio: peak of anonymous memory from load to the end of a first answer, divided by the
        bytes of all weights as they are stored; on a CUDA device the allocator's peak.
    peer: what the peer's rates are of, "" for none.
    """

    shape: str
    backend: str
    dtype: str
    quant: str
    prompt: int
    tokens: int
    rounds: list[Round]
    weight_bytes: int
    prompt_flops: int
    memory_ratio: float
    machine: dict[str, str]
    peer: str = ""

    def median(self, field: str) -> float:
        """Median over the rounds of one of their fields."""
        return float(statistics.median(getattr(r, field) for r in self.rounds))

    def peer_share(self, field: str) -> float:
        """Median over the rounds of a rate divided by the peer's."""
        rates = ((getattr(r, field), getattr(r, "peer_" + field)) for r in self.rounds)
        return float(statistics.median(own / other for own, other in rates))

    @property
    def read_share(self) -> float:
        """Bandwidth of the weights in decode against the read peak of the same round."""
        return statistics.median(
            r.decode_rate * self.weight_bytes / r.read_peak for r in self.rounds
        )

    @property
    def matmul_share(self) -> float:
        """Flop/s of the matrices in prefill against the matmul peak of the same round."""
        return statistics.median(
            r.prefill_rate * self.prompt_flops / r.matmul_peak for r in self.rounds
        )


def measure_decode(
    shape: str,
    *,
    backend: str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    quant: str = "none",
    prompt: int = 128,
    tokens: int = 32,
    repeats: int = 5,
    peer: Peer | None = None,
) -> DecodeResult:
    """Prefill of `prompt` tokens and greedy decoding of `tokens`, `repeats` times.

    dtype "auto" is bfloat16, or what the device takes in its place. peer: its name, and what
    measures its rates of prefill and decode once, after each round.
    """
    server, config = choose_backend(backend, device), SHAPES[shape]
    place = server.device
    kind = auto_dtype(torch.bfloat16, place) if dtype == "auto" else DTYPES[dtype]
    name = next(n for n, d in DTYPES.items() if d == kind)
    spec = None if quant == "none" else parse_spec(quant)
    checkpoint = RandomCheckpoint(config, kind, quant=spec)
    with AnonymousPeak() as memory:
        engine = Engine(build_model(checkpoint, server, name))
        answer(engine, prompt, tokens, seed=0)
    held = torch.cuda.max_memory_allocated(place) if place.type == "cuda" else memory.peak
    return DecodeResult(
        shape=shape,
        backend=server.name,
        dtype=name,
        quant=quant,
        prompt=prompt,
        tokens=tokens,
        rounds=[_round(engine, prompt, tokens, seed, peer) for seed in range(1, repeats + 1)],
        weight_bytes=engine.model.weights.nbytes,
        prompt_flops=2 * _matrix_parameters(config),
        memory_ratio=held / sum(checkpoint.weight(name).nbytes for name in _matrices(config)),
        machine=machine(place),
        peer=peer[0] if peer else "",
    )


def answer(engine: Engine, prompt: int, tokens: int, seed: int) -> Stats:
    """The statistics of one random prompt and its greedy continuation."""
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(engine.model.config.vocab, (prompt,), generator=random).tolist()
    engine.stats = Stats()
    engine.add(Request(ids, SamplingParams(temperature=0, max_tokens=tokens + 1)))
    while engine.busy:
        engine.step()
    return engine.stats


def machine(device: torch.device) -> dict[str, str]:
    """What a figure was measured on, and when."""
    names = {"cpu": f"CPU, {torch.backends.cpu.get_cpu_capability()}", "mps": "Apple GPU"}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else names[device.type]
    return {
        "device": name,
        "threads": str(torch.get_num_threads()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "date": date.today().isoformat(),
    }


def _round(engine: Engine, prompt: int, tokens: int, seed: int, peer: Peer | None) -> Round:
    read = read_bandwidth(_blocks(engine), repeats=3)
    flops = matmul_peak(engine.device, engine.model.activations, repeats=3)
    stats = answer(engine, prompt, tokens, seed)
    others = peer[1]() if peer else (None, None)
    return Round(
        prefill_rate=stats.prefill_tokens / stats.prefill_seconds,
        decode_rate=stats.decode_tokens / stats.decode_seconds,
        read_peak=read,
        matmul_peak=flops,
        peer_prefill_rate=others[0],
        peer_decode_rate=others[1],
    )


def _blocks(engine: Engine) -> list[torch.Tensor]:
    """The memory that a decoded token reads, or as much other memory where it is not torch's."""
    w = engine.model.weights
    matrices = [m for layer in w.layers for m in (layer.w_qkv, layer.w_o, layer.w_13, layer.w_2)]
    if all(isinstance(m, Matrix) for m in (*matrices, w.output)):
        return [part for m in (*matrices, w.output) for part in m.parts]
    return [torch.ones(1 << 27, dtype=torch.int64, device=engine.device)]


def _matrices(config: Config) -> list[str]:
    return [name for name, shape in tensor_shapes(config) if len(shape) == 2]


def _matrix_parameters(config: Config) -> int:
    """Weights that every token of a prompt is multiplied with: the layers' matrices."""
    embeddings = (1 if config.tied else 2) * config.vocab * config.dim
    return config.parameters - embeddings - (2 * config.layers + 1) * config.dim

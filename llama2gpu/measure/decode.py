"""Whole models, measured: prefill, decode, memory, beside the device's limits.

Each round measures the limits and then the model, and shares are taken round by round, so that
they hold where the machine's speed drifts.
"""

import platform
import time
from collections.abc import Callable, Sequence
from datetime import date
from importlib import metadata
from pathlib import Path

import torch

from llama2gpu.backends import resolve_device
from llama2gpu.backends.chosen import hardware
from llama2gpu.backends.matrix import Matrix
from llama2gpu.engine import Engine
from llama2gpu.measure.limits import matmul_peak, read_bandwidth
from llama2gpu.measure.model_result import Case, ModelResult, Round
from llama2gpu.measure.profile import profiling
from llama2gpu.measure.subject import (
    Subject,
    matrix_parameters,
    watching,
    weight_memory,
)
from llama2gpu.request import Request
from llama2gpu.sampling import SamplingParams
from llama2gpu.weights import dtype_name

#: Another engine: its name, and its rates of prefill and decode, measured when called.
Peer = tuple[str, Callable[[], tuple[float, float]]]
Clock = Callable[[], float]
#: A part of the weights is small that the largest holds more often.
SMALL = 256


def measure(
    subject: Subject,
    cases: Sequence[Case],
    repeats: int = 5,
    *,
    peer: Peer | None = None,
    profile: Path | None = None,
    clock: Clock = time.perf_counter,
) -> list[ModelResult]:
    """Loads a model and measures it `repeats` times in each case, after a round that warms up.

    peer: its name, and what measures its rates of prefill and decode once, after each round.
    profile: a file for the trace of one more round, of the last case.
    """
    began = clock()
    with watching(resolve_device("cpu" if subject.backend == "numpy" else subject.device)) as held:
        model = subject.open(max(case.prompt + case.drawn for case in cases))
        loaded = clock() - began
        engine, firsts, peaks = Engine(model, share=False), [], []
        for case in cases:
            firsts.append(answer(engine, case, 0, clock)[0])
            peaks.append(held.peak)
    randomize(engine)
    results = []
    for case, first, peak in zip(cases, firsts, peaks, strict=True):
        if len(cases) > 1:
            answer(engine, case, 0, clock)  # the cache has grown, and graphs were of the old one
        rounds = [_round(engine, case, seed, peer, clock) for seed in range(1, repeats + 1)]
        results.append(
            ModelResult(
                bench=case.bench,
                model=subject.name,
                backend=model.backend.name,
                dtype=dtype_name(model.dtype),
                quant=subject.quant,
                depth=case.depth,
                batch=case.batch,
                tokens=case.tokens,
                rounds=rounds,
                weight_bytes=model.weights.nbytes,
                cache_bytes=_cache_bytes(engine, case),
                prompt_flops=2 * matrix_parameters(model.config),
                load_seconds=loaded,
                first_seconds=first if case.prefilled else None,
                memory_bytes=peak,
                memory_ratio=None if peak is None else peak / weight_memory(model),
                machine=machine(engine.device),
                peer=peer[0] if peer else "",
            )
        )
    if profile is not None:
        with profiling(profile, model.backend):
            answer(engine, cases[-1], 0, clock)
    return results


def answer(engine: Engine, case: Case, seed: int, clock: Clock) -> tuple[float, float]:
    """Seconds until all first tokens of a case are there, and from then on to the last."""
    params = SamplingParams(temperature=0, max_tokens=case.drawn + 1)
    sequences = []
    for ids in prompts(engine.model.config.vocab, case, seed):
        sequences.append(engine.add(Request(ids, params)))
        sequences[-1].cached = case.cached
    began = clock()
    while any(not s.output and s.reason is None for s in sequences):
        engine.step()
    ready = clock()
    while engine.busy:
        engine.step()
    done = clock()
    for s in sequences:
        if s.error is not None:
            raise s.error
    return ready - began, done - ready


def prompts(vocab: int, case: Case, seed: int) -> list[list[int]]:
    """The prompts of a case, of random tokens."""
    random = torch.Generator().manual_seed(seed)
    size = (case.prompt,)
    return [torch.randint(vocab, size, generator=random).tolist() for _ in range(case.batch)]


@torch.inference_mode()
def randomize(engine: Engine) -> None:
    """Fills the whole cache, so that no key is zero: products of zeros take less time and power."""
    random = torch.Generator(engine.device).manual_seed(0)
    for part in engine.cache.parts:
        part.normal_(generator=random)


def _round(engine: Engine, case: Case, seed: int, peer: Peer | None, clock: Clock) -> Round:
    read = read_bandwidth(_blocks(engine), repeats=3)
    flops = matmul_peak(engine.device, engine.model.activations, repeats=3)
    first, rest = answer(engine, case, seed, clock)
    others = peer[1]() if peer else (None, None)
    return Round(
        prefill_rate=case.prefilled / first if case.prefilled else None,
        decode_rate=case.drawn * case.batch / rest if case.decodes else None,
        read_peak=read,
        matmul_peak=flops,
        peer_prefill_rate=others[0],
        peer_decode_rate=others[1],
    )


def _cache_bytes(engine: Engine, case: Case) -> int:
    """Keys and values that a step in the middle of decoding reads."""
    return round(case.batch * (case.prompt + case.drawn / 2) * engine.cache.token_bytes)


def _blocks(engine: Engine) -> list[torch.Tensor]:
    """The memory that a decoded token reads on a CPU, but for its smallest parts; else other.

    To begin with a small one takes longer than to read it, and on a GPU that goes for a matrix.
    """
    w = engine.model.weights
    matrices = [m for layer in w.layers for m in (layer.w_qkv, layer.w_o, layer.w_13, layer.w_2)]
    if engine.device.type == "cpu" and all(isinstance(m, Matrix) for m in (*matrices, w.output)):
        parts = [part for m in (*matrices, w.output) for part in m.parts]
        least = max(part.nbytes for part in parts) // SMALL
        return [part for part in parts if part.nbytes >= least]
    return [torch.ones(1 << 27, dtype=torch.int64, device=engine.device)]


def machine(device: torch.device) -> dict[str, str]:
    """What a figure was measured on, and when."""
    return {
        "device": hardware(device),
        "threads": str(torch.get_num_threads()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "date": date.today().isoformat(),
    }

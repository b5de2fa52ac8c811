"""What a model is compiled for ahead, and whether that is what its engine launches."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch

from llama2gpu.backends.triton import TritonBackend
from llama2gpu.build import build_model
from llama2gpu.checkpoints import RandomCheckpoint
from llama2gpu.config import Config
from llama2gpu.engine import Engine
from llama2gpu.kernels.arch import ARCHS
from llama2gpu.kernels.launch import INTERPRETED, Launch
from llama2gpu.kernels.tuned import Tuned
from llama2gpu.measure.warm_model import meta_backend, model_launches
from llama2gpu.open_quantizer import open_quantizer, read_spec
from llama2gpu.quant import QuantSpec
from llama2gpu.request import Request
from llama2gpu.sampling import SamplingParams

#: There types and plans are others, and nothing is compiled.
pytestmark = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET is set: nothing is compiled")

ARCH = ARCHS["sm_90"]
SMALL = Config(dim=64, hidden=96, layers=1, heads=4, kv_heads=2, head_dim=16, vocab=68, context=640)


def key(launch: Launch) -> tuple[Any, ...]:
    """What Triton tells apart: all that is constant, and a little of the arguments."""

    def kind(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.dtype
        return value == 1 or (value % 16 == 0, "number") if isinstance(value, int) else type(value)

    plan = launch.plan
    kinds = tuple((name, kind(value)) for name, value in launch.arguments.items())
    constants = tuple(sorted(plan.constants.items(), key=lambda item: item[0]))
    return launch.name, plan.num_warps, plan.num_stages, plan.pdl, constants, kinds


@pytest.mark.parametrize("quant", ["none", "int8", "int8:32+head", "int4:32", "int4:32+zeros"])
@pytest.mark.parametrize("kv_dtype", [torch.bfloat16, torch.int8], ids=str)
def test_an_engine_launches_nothing_else(
    quant: str, kv_dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing runs: each step draws token 1."""
    launched: list[Launch] = []

    def spied(self: Launch) -> None:
        launched.append(self)
        if "p_tokens" in self.arguments and "p_logprobs" in self.arguments:
            self.arguments["p_tokens"].fill_(1)
            self.arguments["p_logprobs"].zero_()

    backend = TritonBackend(torch.device("cpu"), ARCH)
    checkpoint, spec = RandomCheckpoint(SMALL, torch.bfloat16), read_spec(quant, None)
    quantizer = None if spec is None else open_quantizer(checkpoint, spec, backend)
    model = build_model(checkpoint, backend, "bf16", quantizer=quantizer)
    engine = Engine(model, kv_dtype=kv_dtype)
    monkeypatch.setattr(Launch, "run", spied)
    serve(engine, 1, temperature=0)
    serve(engine, 2, temperature=1.0, top_p=1.0)
    serve(engine, 1, temperature=1.0, top_p=0.9, repetition_penalty=1.1)

    meta = meta_backend(ARCH, backend.multiprocessors, Tuned())
    ready = list(model_launches(SMALL, spec, kv_dtype, [1, 2, 3, 6], meta))
    assert {"_decode_kernel", "_prefill_kernel", "_head_kernel", "_floor_kernel"} <= {
        one.name for one in launched
    }
    assert not keys(launched) - keys(ready)


def keys(launches: Iterable[Launch]) -> set[tuple[Any, ...]]:
    return {key(one) for one in launches}


def serve(engine: Engine, sequences: int, **params: Any) -> None:
    """Prompts of three tokens, and three more of each."""
    for seed in range(sequences):
        engine.add(Request([seed + 1, 5, 9], SamplingParams(max_tokens=3, seed=seed, **params)))
    while engine.busy:
        engine.step()


def test_all_kernels_of_a_model() -> None:
    backend = meta_backend(ARCH, 132, Tuned())
    names = {
        kv: {x.name for x in model_launches(SMALL, QuantSpec("int4", 64), kv, [1, 2, 128], backend)}
        for kv in (torch.bfloat16, torch.int8)
    }
    every = {"embed", "decode", "prefill", "linear", "gate_up", "head", "draw", "floor", "advance",
             "penalize", "dequantize", "rms_norm", "silu_mul", "rope_write"}  # fmt: skip
    assert names[torch.int8] == {f"_{name}_kernel" for name in every}
    assert names[torch.bfloat16] == names[torch.int8] | {"_qkv_kernel"}


def test_planned_for_the_device() -> None:
    context = replace(SMALL, context=8192)

    def splits(multiprocessors: int) -> set[int]:
        backend = meta_backend(ARCH, multiprocessors, Tuned())
        found = model_launches(context, None, torch.bfloat16, [1], backend)
        return {x.plan.constants["SPLITS"] for x in found if x.name == "_decode_kernel"}

    assert splits(8) != splits(132)
    assert len(splits(132)) > 1  # of several lengths


def test_a_matrix_that_no_group_divides_stays_dense() -> None:
    backend = meta_backend(ARCH, 132, Tuned())
    odd = replace(SMALL, hidden=172)
    found = list(model_launches(odd, QuantSpec("int4", 64), torch.bfloat16, [1], backend))
    bits = {x.plan.constants["BITS"] for x in found if x.plan.constants.get("K") == 172}
    assert bits == {16}
    assert {x.plan.constants["BITS"] for x in found if x.name == "_qkv_kernel"} == {4}

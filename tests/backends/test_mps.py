"""What the torch backend runs on an Apple GPU exists there, as far as PyTorch's own tables say.

The backend takes its MPS ways on CPU tensors while every ATen op is recorded, composite ops opened
down to what they call. Each must have an MPS kernel in the `native_functions.yaml` of the installed
PyTorch. This can't show that a kernel takes the types and shapes it is given, that this macOS has
it, that its numbers are right, or what an op with an MPS kernel of its own calls. Choices
that PyTorch's C++ makes by device are followed only where `TWINS` names them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any

import pytest
import torch
import yaml  # type: ignore[import-untyped]
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import llama2gpu.backends.torch as torch_backend
from llama2gpu.backends.base import Backend
from llama2gpu.build import build_model
from llama2gpu.checkpoints import RandomCheckpoint
from llama2gpu.config import Config
from llama2gpu.engine import Engine
from llama2gpu.model import Model
from llama2gpu.request import Request
from llama2gpu.sampling import SamplingParams

#: What PyTorch picks on a CPU alone → what it picks on MPS for the same call.
TWINS = {
    "aten::_scaled_dot_product_flash_attention_for_cpu": (
        "aten::_scaled_dot_product_attention_math_for_mps"
    ),
    "aten::_weight_int4pack_mm_for_cpu": "aten::_weight_int4pack_mm",
}
COMPOSITE = (
    torch._C.DispatchKey.CompositeImplicitAutograd,
    torch._C.DispatchKey.CompositeExplicitAutograd,
    torch._C.DispatchKey.CompositeExplicitAutogradNonFunctional,
)
CONFIG = Config(dim=64, hidden=96, layers=2, heads=4, kv_heads=2, head_dim=32, vocab=96, context=64)


def dense(dtype: str) -> Callable[[Backend], Model]:
    return lambda backend: build_model(RandomCheckpoint(CONFIG, torch.float32), backend, dtype)


#: Kinds of weights: name → the model of them on a backend.
WEIGHTS: dict[str, Callable[[Backend], Model]] = {"fp16": dense("fp16"), "fp32": dense("fp32")}


def _read_table() -> dict[str, dict[str, Any]]:
    """PyTorch's own functions by name with overload."""
    path = resources.files("torchgen") / "packaged" / "ATen" / "native" / "native_functions.yaml"
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {"aten::" + entry["func"].partition("(")[0]: entry for entry in entries}


TABLE = _read_table()


def has_mps_kernel(op: str) -> bool:
    """Whether an op, or the structured op that it is a form of, is implemented for MPS."""
    entry = TABLE.get(op, {})
    if "structured_delegate" in entry:
        entry = TABLE["aten::" + entry["structured_delegate"]]
    return any("MPS" in keys.replace(",", " ").split() for keys in entry.get("dispatch", {}))


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The ops that run, and the types of all tensors that they take and give."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ops: set[str] = set()
        self.dtypes: set[torch.dtype] = set()
        self._open: Any = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = self._run(func, args, kwargs)
        leaves = tree_leaves((args, kwargs, out))
        self.dtypes |= {leaf.dtype for leaf in leaves if isinstance(leaf, torch.Tensor)}
        return out

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = func.name()
        if func is self._open:  # a composite op that calls itself, once autograd is out of the way
            return func(*args, **kwargs)
        if not has_mps_kernel(name):
            for key in COMPOSITE:
                if torch._C._dispatch_has_kernel_for_dispatch_key(name, key):
                    outer, self._open = self._open, func
                    try:
                        with self:
                            return func._op_dk(key, *args, **kwargs)
                    finally:
                        self._open = outer
        self.ops.add(name)
        return func(*_wrapped(func, args), **kwargs)

    @property
    def missing(self) -> list[str]:
        """What an Apple GPU lacks."""
        lacking = [op for op in self.ops if not has_mps_kernel(TWINS.get(op, op))]
        wide = [str(d) for d in self.dtypes if d == torch.float64 or d.is_complex]
        return sorted(lacking + wide)


def _wrapped(func: Any, args: tuple[Any, ...]) -> list[Any]:
    """Plain numbers as tensors where the op takes a tensor: not every op does that for itself."""
    takes_tensor = [str(argument.type) == "Tensor" for argument in func._schema.arguments]
    return [
        torch.tensor(value) if tensor and isinstance(value, int | float) else value
        for value, tensor in zip(args, takes_tensor, strict=False)
    ]


@contextmanager
def as_on_mps(monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """A backend on the CPU that goes the ways of MPS; what is for a CPU alone raises."""

    def forbidden(*_: object) -> None:
        raise AssertionError("a way for the CPU alone")

    backend = torch_backend.TorchBackend(torch.device("cpu"))
    backend.kind = "mps"
    with monkeypatch.context() as patch:
        for name in vars(torch_backend):
            if name.startswith("cpu_"):
                patch.setattr(torch_backend, name, forbidden)
        yield backend


def answer_all_ways(engine: Engine) -> None:
    """Prefill, chunked prefill, decode alone and in a batch, a mixed batch; all of sampling."""
    everything = SamplingParams(
        max_tokens=3, temperature=0.9, top_k=20, top_p=0.9, min_p=0.02, seed=5, logprobs=3,
        repetition_penalty=1.1, presence_penalty=0.1, frequency_penalty=0.1, logit_bias={3: 1.0},
    )  # fmt: skip
    greedy = SamplingParams(max_tokens=4, temperature=0)
    plain = SamplingParams(max_tokens=5, temperature=1.0, seed=1)
    for round in ([greedy], [everything], [greedy, plain, everything]):
        for i, params in enumerate(round):
            engine.add(Request(list(range(1, 7 + 9 * i)), params, frozenset()))
        while engine.busy:
            engine.step()


@pytest.mark.parametrize("recompute", [False, True], ids=["cached", "recomputed"])
@pytest.mark.parametrize("kv_dtype", [None, torch.int8], ids=["kv", "kv-int8"])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_every_op_exists_on_mps(
    weights: str, kv_dtype: torch.dtype | None, recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with as_on_mps(monkeypatch) as backend:
        model = WEIGHTS[weights](backend)
        engine = Engine(model, chunk=8, page=16, kv_dtype=kv_dtype, recompute=recompute)
        with Recorder() as recorder:
            answer_all_ways(engine)
    assert recorder.missing == []
    assert recorder.ops >= {"aten::silu", "aten::searchsorted.Tensor", "aten::topk"}
    assert ("aten::round" in recorder.ops) == (kv_dtype is not None)


def test_ways_of_the_cpu_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with as_on_mps(monkeypatch) as backend:
        model = dense("fp32")(backend)
        backend.kind = "cpu"  # type: ignore[attr-defined]
        with pytest.raises(AssertionError, match="CPU alone"):
            answer_all_ways(Engine(model))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (lambda: torch.geqrf(torch.ones(2, 2)), "aten::geqrf"),
        (lambda: torch.ones(2).double() + 1, "torch.float64"),
        (lambda: torch.view_as_complex(torch.ones(2, 2)), "torch.complex64"),
        (lambda: torch.linalg.lstsq(torch.ones(2, 2), torch.ones(2, 1)), "aten::linalg_lstsq"),
    ],
    ids=["geqrf", "float64", "complex", "composite"],
)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_mps_lacks_is_noticed(
    wrong: Callable[[], object], named: str, mode: Callable[[], Any]
) -> None:
    with Recorder() as recorder, mode():
        wrong()
    assert any(name.startswith(named) for name in recorder.missing), recorder.missing


def test_twins_exist() -> None:
    for here, there in TWINS.items():
        assert here in TABLE
        assert has_mps_kernel(there)
        assert not has_mps_kernel(here)

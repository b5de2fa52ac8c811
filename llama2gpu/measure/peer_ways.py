"""How single ops of ours are done by other software's kernels, on the same values."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llama2gpu.backends.torch_packed import Int4Matrix
from llama2gpu.errors import BackendError
from llama2gpu.measure.baselines import INPUT
from llama2gpu.measure.kernel_timer import Call
from llama2gpu.measure.kernel_work import Work
from llama2gpu.quant import Int4, Weight
from llama2gpu.quant.pack import unpack_int4
from llama2gpu.quant.weight import MIDDLE

Arguments = dict[str, Any]


class Way(NamedTuple):
    """A call to time, and what it computes.

    op: of the contract, which on `arguments` (and the work's matrix) gives what `result` does.
    """

    op: str
    arguments: Arguments
    call: Call
    result: Callable[[], Tensor]


#: Of a work, arguments and matrix of one set; raises `BackendError` for what a kernel can't do.
Maker = Callable[[Work, Arguments, Weight | None], Way]


def tinygemm(work: Work, arguments: Arguments, weight: Weight | None) -> Way:
    """PyTorch's int4 product: `_weight_int4pack_mm`, or its `_for_cpu`."""
    x = arguments[INPUT[work.op]]
    if x.dtype != torch.bfloat16:
        raise BackendError("takes bfloat16 alone: say --dtype bf16")
    if not isinstance(weight, Int4) or not Int4Matrix.takes(weight, x.device.type):
        raise BackendError(f"has no kernel for {work.n} x {work.k} here")
    return _product(x, Int4Matrix(weight, x.device.type).linear)


def gemlite(work: Work, arguments: Arguments, weight: Weight | None) -> Way:
    """GemLite's product of 16-bit activations and grouped 4-bit weights."""
    from gemlite.helper import A16W4_HQQ_INT

    x = arguments[INPUT[work.op]]
    if x.dtype not in (torch.bfloat16, torch.float16):
        raise BackendError("takes 16 bits: say --dtype bf16")
    assert isinstance(weight, Int4)
    scales = weight.scales.to(x.dtype)
    zeros = torch.full_like(scales, MIDDLE) if weight.zeros is None else weight.zeros.to(x.dtype)
    packing = A16W4_HQQ_INT(device=x.device, dtype=x.dtype)
    return _product(x, packing.from_weights(unpack_int4(weight.packed), scales, zeros))


def _product(x: Tensor, multiply: Callable[[Tensor], Tensor]) -> Way:
    call = partial(multiply, x)
    return Way("linear", {"x": x}, call, call)


def liger_rms_norm(work: Work, arguments: Arguments, weight: Weight | None) -> Way:
    """Liger's RMSNorm, with weights of the type of x."""
    from liger_kernel.transformers.functional import liger_rms_norm

    norm, x = arguments["norm"], arguments["x"]
    call = partial(liger_rms_norm, x, norm.weight.to(x.dtype), norm.eps)
    return Way(work.op, arguments, call, call)


def liger_swiglu(work: Work, arguments: Arguments, weight: Weight | None) -> Way:
    """Liger's silu(gate) · up, of gates and ups that lie apart."""
    from liger_kernel.transformers.functional import liger_swiglu

    call = partial(liger_swiglu, *(arguments["x"][:, i::2].contiguous() for i in range(2)))
    return Way(work.op, arguments, call, call)


def liger_rope(work: Work, arguments: Arguments, weight: Weight | None) -> Way:
    """Liger's RoPE, in place, on pairs half a head apart.

    It takes queries and keys at once: half of the heads are given as each.
    """
    from liger_kernel.transformers.functional import liger_rope

    x, rope, at = (arguments[name] for name in ("x", "rope", "positions"))
    tokens, heads, size = x.shape
    apart = x.view(tokens, heads, size // 2, 2).transpose(2, 3).reshape(x.shape)
    q, k = (
        part.contiguous()[None].transpose(1, 2)  # [1, heads, T, size], laid out by token
        for part in apart.split([heads - heads // 2, heads // 2], dim=1)
    )
    cos, sin = (torch.cat((part[at], part[at]), dim=-1)[None] for part in (rope.cos, rope.sin))

    def result() -> Tensor:
        turned = liger_rope(q.clone(), k.clone(), cos, sin)
        joined = torch.cat([part.transpose(1, 2)[0] for part in turned], dim=1)
        return joined.view(tokens, heads, 2, size // 2).transpose(2, 3).reshape(x.shape)

    return Way(work.op, arguments, partial(liger_rope, q, k, cos, sin), result)


_INT4 = ("linear", "project_add", "gate_up")

#: Of each peer the ops that it has something for.
WAYS: Mapping[str, Mapping[str, Maker]] = {
    "tinygemm": dict.fromkeys(_INT4, tinygemm),
    "gemlite": dict.fromkeys(_INT4, gemlite),
    "liger-kernel": {"rms_norm": liger_rms_norm, "rope": liger_rope, "silu_mul": liger_swiglu},
}

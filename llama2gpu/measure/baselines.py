"""What PyTorch itself has for an op, to be timed beside it on the same values."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from llama2gpu.backends.base import LayerCache
from llama2gpu.backends.torch_packed import FEW as FEW_INT8
from llama2gpu.backends.torch_packed import Int4Matrix, Int8Matrix
from llama2gpu.measure.kernel_work import Work
from llama2gpu.quant import Int4, Int8, Weight

#: The input that an op multiplies with its matrix.
INPUT = {"linear": "x", "qkv": "x", "project_add": "a", "gate_up": "x", "logits": "x"}
#: Most tokens for which tinygemm is worth a try.
FEW_INT4 = 64
#: Bytes of keys that grouped queries may have repeated for them.
REPEATED = 1 << 30


class Baseline(NamedTuple):
    """A call of PyTorch's, by the name that a person knows it by."""

    name: str
    call: Callable[[], object]


class Product(NamedTuple):
    """PyTorch's product with one matrix: of the name, a function of x of at most so many tokens."""

    name: str
    most: int
    of: Callable[[torch.Tensor], torch.Tensor]


def products(weight: Weight, dtype: torch.dtype) -> Iterator[Product]:
    """PyTorch's products with a matrix: of its values in `dtype`, and of its codes.

    Of a fused op that is the product alone, which does less.
    """
    dense = weight.dequantize(dtype)
    yield Product("F.linear", 1 << 30, lambda x: F.linear(x, dense))
    kind = dense.device.type
    if kind == "cpu" and dtype != torch.bfloat16:  # what its kernels are made for
        return
    if isinstance(weight, Int8) and Int8Matrix.takes(weight, kind):
        yield Product("_weight_int8pack_mm", FEW_INT8, Int8Matrix(weight, kind).linear)
    if isinstance(weight, Int4) and dtype == torch.bfloat16 and Int4Matrix.takes(weight, kind):
        name = "_weight_int4pack_mm" + "_for_cpu" * (kind == "cpu")
        yield Product(name, FEW_INT4, Int4Matrix(weight, kind).linear)


def baselines(work: Work, arguments: dict[str, Any]) -> Iterator[Baseline]:
    """PyTorch's own for an op without a matrix; none for some."""
    if work.op == "rms_norm":
        x, norm = arguments["x"], arguments["norm"]
        weight = norm.weight.to(x.dtype)
        yield Baseline("F.rms_norm", lambda: F.rms_norm(x, weight.shape, weight, norm.eps))
    if work.op == "silu_mul":
        gate, up = (arguments["x"][:, i::2].contiguous() for i in range(2))
        yield Baseline("F.silu * up", lambda: F.silu(gate) * up)
    if work.op == "attention":
        yield from _attention(work, arguments)


def _attention(work: Work, arguments: dict[str, Any]) -> Iterator[Baseline]:
    """SDPA of keys and values that lie in order, by head; as stored, or repeated for the groups."""
    c, s, name = work.config, work.sequences, "F.scaled_dot_product_attention"
    each = work.m // s
    q = arguments["q"].view(s, each, c.heads, c.head_dim).transpose(1, 2).contiguous()
    k, v = (_in_order(arguments, part, q.dtype, work.context) for part in "kv")
    options: dict[str, Any] = {"is_causal": each > 1}
    if 1 < each < work.context:
        seen = torch.ones(each, work.context, dtype=torch.bool, device=q.device)
        options = {"attn_mask": seen.tril(work.context - each)}
    grouped = options | {"enable_gqa": c.heads != c.kv_heads}
    yield Baseline(name, lambda: F.scaled_dot_product_attention(q, k, v, **grouped))
    groups = c.heads // c.kv_heads
    if groups > 1 and k.nbytes * groups <= REPEATED:
        keys, values = (x.repeat_interleave(groups, dim=1) for x in (k, v))
        yield Baseline(name, lambda: F.scaled_dot_product_attention(q, keys, values, **options))


def _in_order(
    arguments: dict[str, Any], part: str, dtype: torch.dtype, length: int
) -> torch.Tensor:
    """Keys or values [S, kv_heads, length, head_dim], dequantized."""
    cache: LayerCache = arguments["cache"]
    pages = arguments["batch"].block_table.long()
    run: torch.Tensor = getattr(cache, part)[pages]  # [S, P, kv_heads, page, head_dim]
    scale = getattr(cache, part + "_scale")
    if scale is not None:
        run = run * scale[pages][..., None]
    return run.to(dtype).transpose(1, 2).flatten(2, 3)[:, :, :length].contiguous()

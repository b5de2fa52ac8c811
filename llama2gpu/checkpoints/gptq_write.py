"""Quantized matrices as the tensors of GPTQ's layout, and the `quantization_config` beside them.

Layout: `checkpoints.gptq`; written is its format "gptq", which every engine reads. GPTQModel takes
zero points other than the middle in this format from its own quantizer alone; vLLM takes them.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from llama2gpu.checkpoints.gptq_pack import from_units, pack_int8, pack_zeros
from llama2gpu.errors import RequestError
from llama2gpu.quant import Dense, Int4, Int8, Weight
from llama2gpu.quant.pack import pack_int4, unpack_int4
from llama2gpu.quant.weight import MIDDLE

_LAYERS = "model.layers."
#: Rows of a matrix that are repacked at a time.
_ROWS = 512
#: Modules that other engines join, and look for by their joint name.
_FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}


@dataclass(frozen=True)
class Scheme:
    """How one matrix is stored; group −1 is a scale for each row."""

    bits: int
    group: int
    symmetric: bool
    ordered: bool

    @property
    def size(self) -> tuple[int, int]:
        """What may differ between the matrices of a folder: bits and group."""
        return self.bits, self.group


def scheme_of(weight: Weight) -> Scheme | None:
    """How a matrix is stored; None where it is dense."""
    if isinstance(weight, Dense):
        return None
    group = -1 if weight.scales.shape[1] == 1 else weight.group
    if isinstance(weight, Int8):
        return Scheme(8, group, symmetric=True, ordered=False)
    return Scheme(4, group, symmetric=weight.zeros is None, ordered=weight.order is not None)


def gptq_tensors(name: str, weight: Int4 | Int8) -> dict[str, torch.Tensor]:
    """`qweight`, `qzeros`, `scales` and `g_idx` of a matrix.

    Raises `RequestError`, in the `name` of the matrix, for what the layout can't hold: scales that
    are not float16, zero points of 0, rows or columns that do not fill the words.
    """
    _check(name, weight)
    columns, bits = weight.shape[1], 4 if isinstance(weight, Int4) else 8
    groups = torch.arange(columns, dtype=torch.int32) // weight.group
    if isinstance(weight, Int8):
        zeros = torch.full_like(weight.scales, 128, dtype=torch.uint8)
    else:
        zeros = _zeros(weight)
        groups = groups if weight.order is None else groups[weight.order.argsort()]
    return {
        "qweight": _qweight(weight),
        "qzeros": pack_zeros(zeros.T - 1, bits),
        "scales": weight.scales.T.contiguous(),
        "g_idx": groups,
    }


def misfit(weight: Int4 | Int8) -> tuple[str, str] | None:
    """Why the layout can't hold a matrix, and what to do about it; None where it can."""
    word = 8 if isinstance(weight, Int4) else 4
    if weight.scales.dtype != torch.float16:
        kind = str(weight.scales.dtype).removeprefix("torch.")
        return f"its scales are {kind}, not float16", "quantize it again"
    if weight.shape[0] % word or weight.shape[1] % word:
        return f"it is {list(weight.shape)}, no multiple of {word}", "leave it dense"
    if isinstance(weight, Int4) and weight.zeros is not None and not bool(weight.zeros.all()):
        return "it has a zero point of 0", "quantize it with zero points 1 to 15"
    return None


def _check(name: str, weight: Int4 | Int8) -> None:
    if found := misfit(weight):
        what, remedy = found
        raise RequestError(f"{name} can't be saved in GPTQ's layout: {what}; {remedy}")


def _zeros(weight: Int4) -> torch.Tensor:
    if weight.zeros is None:
        return torch.full_like(weight.scales, MIDDLE, dtype=torch.uint8)
    return weight.zeros


def _qweight(weight: Int4 | Int8) -> torch.Tensor:
    """The values with the columns in the order of the matrix, some rows at a time."""
    if isinstance(weight, Int8):
        blocks = torch.split(weight.data, _ROWS)
        return torch.cat([pack_int8(block.view(torch.uint8) ^ 128) for block in blocks], 1)
    blocks = torch.split(weight.packed, _ROWS)
    if weight.order is not None:
        back = weight.order.argsort()
        blocks = tuple(pack_int4(unpack_int4(block)[:, back]) for block in blocks)
    return torch.cat([from_units(block) for block in blocks], 1)


def quantization_fields(schemes: Mapping[str, Scheme | None]) -> dict[str, Any]:
    """`quantization_config` of a folder whose matrices, by module name, are stored so.

    bits and group_size are those of most matrices; GPTQModel's and vLLM's "dynamic" names the
    others, and the projections that stayed dense. Empty where all are dense.
    """
    quantized = [scheme for scheme in schemes.values() if scheme is not None]
    if not quantized:
        return {}
    bits, group = Counter(scheme.size for scheme in quantized).most_common(1)[0][0]
    rules = dict(_rules(schemes, (bits, group)))
    return {
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "bits": bits,
        "group_size": group,
        "sym": all(scheme.symmetric for scheme in quantized),
        "desc_act": any(scheme.ordered for scheme in quantized),
        "lm_head": schemes.get("lm_head") is not None,
        "pack_dtype": "int32",
        **({"dynamic": rules} if rules else {}),
        "meta": {"quantizer": ["llama2gpu"]},
    }


def _rules(
    schemes: Mapping[str, Scheme | None], usual: tuple[int, int]
) -> Iterator[tuple[str, dict[str, int]]]:
    """Patterns of module names and what differs there; "-:" is dense, "+:" has other sizes."""
    layers: dict[tuple[str, tuple[int, int] | None], list[str]] = {}
    for module, scheme in schemes.items():
        size = None if scheme is None else scheme.size
        if size == usual:
            continue
        if module.startswith(_LAYERS):
            n, _, kind = module.removeprefix(_LAYERS).partition(".")
            layers.setdefault((kind, size), []).append(n)
        elif size is not None:
            yield _rule(module, size)
    for fused, (first, *others) in _FUSED.items():
        for (kind, size), found in list(layers.items()):
            if kind == first and all(layers.get((other, size)) == found for other in others):
                layers[fused, size] = found
    for (kind, size), found in layers.items():
        yield _rule(f"{_LAYERS}({'|'.join(found)}).{kind}", size)


def _rule(module: str, size: tuple[int, int] | None) -> tuple[str, dict[str, int]]:
    pattern = module.replace(".", r"\.") + "$"
    if size is None:
        return f"-:{pattern}", {}
    return f"+:{pattern}", {"bits": size[0], "group_size": size[1]}

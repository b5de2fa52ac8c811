"""GPTQ folders made and read in plain numpy, from the layout's description alone."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from llama2gpu.config import Config
from tests.checkpoints.writers import (
    HF_KINDS,
    HF_TOP,
    Tensors,
    half_split,
    random_tensors,
    write_huggingface,
)

Array = NDArray[Any]

CONFIG = Config(
    dim=64, hidden=96, layers=2, heads=4, kv_heads=2, head_dim=16, vocab=96, context=64, tied=False
)


@dataclass
class Matrix:
    """Values and zero points as they are meant, `[N, K]` and `[N, groups]`; `g_idx` by column."""

    values: Array
    zeros: Array
    scales: Array
    g_idx: Array
    bits: int = 4

    def dense(self) -> Array:
        """The matrix by its definition, one column after the other, in float64."""
        out = np.empty(self.values.shape)
        for k, g in enumerate(self.g_idx):
            centred = self.values[:, k].astype(np.float64) - self.zeros[:, g]
            out[:, k] = centred * self.scales[:, g].astype(np.float64)
        return out

    def parts(self, v2: bool = False) -> Tensors:
        """The four tensors, word by word."""
        per, bits = 32 // self.bits, self.bits
        rows, columns = self.values.shape
        zeros = (self.zeros.astype(np.int64) - (0 if v2 else 1)) % (1 << bits)
        qweight = np.zeros((columns // per, rows), np.uint64)
        for k in range(columns):
            qweight[k // per] |= self.values[:, k].astype(np.uint64) << np.uint64(k % per * bits)
        qzeros = np.zeros((zeros.shape[1], rows // per), np.uint64)
        for n in range(rows):
            qzeros[:, n // per] |= zeros[n].astype(np.uint64) << np.uint64(n % per * bits)
        return {
            "qweight": torch.from_numpy(qweight.astype(np.uint32).view(np.int32)),
            "qzeros": torch.from_numpy(qzeros.astype(np.uint32).view(np.int32)),
            "scales": torch.from_numpy(np.ascontiguousarray(self.scales.T)),
            "g_idx": torch.from_numpy(self.g_idx.astype(np.int32)),
        }


def read_parts(parts: Tensors, bits: int) -> Array:
    """Four tensors in the v1 layout to the matrix `[N, K]`, one value after the other."""
    qweight, qzeros = (parts[name].numpy().view(np.uint32) for name in ("qweight", "qzeros"))
    scales, g_idx = parts["scales"].numpy().astype(np.float64), parts["g_idx"].numpy()
    per, mask = 32 // bits, (1 << bits) - 1
    rows, columns = qweight.shape[1], qweight.shape[0] * per
    out = np.empty((rows, columns))
    for n in range(rows):
        for k in range(columns):
            value = int(qweight[k // per, n]) >> k % per * bits & mask
            zero = (int(qzeros[g_idx[k], n // per]) >> n % per * bits) + 1 & mask
            out[n, k] = (value - zero) * scales[g_idx[k], n]
    return out


def random_matrix(
    rows: int, columns: int, *, group: int = 32, bits: int = 4, zeros: bool = False, seed: int = 0
) -> Matrix:
    """Random values, positive scales, and zero points in the middle or anywhere from 1 up."""
    rng = np.random.default_rng([seed, rows, columns])
    groups = -(-columns // group)
    middle = np.full((rows, groups), 1 << bits - 1)
    any_zeros = rng.integers(1, 1 << bits, (rows, groups))
    return Matrix(
        values=rng.integers(0, 1 << bits, (rows, columns)),
        zeros=any_zeros if zeros else middle,
        scales=rng.uniform(0.001, 0.02, (rows, groups)).astype(np.float16),
        g_idx=np.arange(columns) // group,
        bits=bits,
    )


def canonical_rows(name: str, matrix: Array, head_dim: int = CONFIG.head_dim) -> Array:
    """A matrix in Hugging Face's order of rows in the canonical one."""
    if not name.endswith((".wq", ".wk")):
        return matrix
    out = np.empty_like(matrix)
    for head in range(0, len(matrix), head_dim):
        for i in range(head_dim // 2):
            out[head + 2 * i] = matrix[head + i]
            out[head + 2 * i + 1] = matrix[head + head_dim // 2 + i]
    return out


def module_of(name: str) -> str:
    """Hugging Face's module of a matrix of a layer, or of the head."""
    if name == "output":
        return "lm_head"
    _, n, kind = name.split(".")
    return f"model.layers.{n}.{HF_KINDS[kind]}"


def quantization(bits: int = 4, group: int = 32, **more: Any) -> dict[str, Any]:
    """`quantization_config` as AutoGPTQ writes it."""
    told = {"bits": bits, "group_size": group, "quant_method": "gptq", "desc_act": False}
    return told | {"sym": True, "damp_percent": 0.01, "true_sequential": True} | more


def matrices_of(config: Config = CONFIG, **options: Any) -> dict[str, Matrix]:
    """A random quantized matrix for each projection."""
    tensors = random_tensors(config)
    return {
        name: random_matrix(*tensor.shape, seed=n, **options)
        for n, (name, tensor) in enumerate(tensors.items())
        if tensor.dim() == 2 and name not in ("embed", "output")
    }


def write_gptq(
    folder: Path,
    matrices: dict[str, Matrix],
    *,
    told: dict[str, Any] | None = None,
    v2: bool = False,
    change: Tensors | None = None,
) -> Path:
    """A folder with these matrices quantized, in Hugging Face's order of rows, the others float16.

    `change` is merged over the tensors of the file.
    """
    tensors = random_tensors(CONFIG, torch.float16)
    told = told or quantization(next(iter(matrices.values())).bits)
    write_huggingface(folder, CONFIG, tensors, fields={"quantization_config": told})
    stored = {
        name: half_split(t, CONFIG.head_dim) if name.endswith((".wq", ".wk")) else t.clone()
        for name, t in tensors.items()
    }
    named: Tensors = {}
    for name, tensor in stored.items():
        if name in matrices:
            parts = matrices[name].parts(v2)
            named |= {f"{module_of(name)}.{part}": value for part, value in parts.items()}
        else:
            named[HF_TOP.get(name) or f"{module_of(name)}.weight"] = tensor
    save_file(named | (change or {}), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def set_fields(folder: Path, **fields: Any) -> Path:
    """Changes `quantization_config` of a folder."""
    path = folder / "config.json"
    values = json.loads(path.read_text())
    values["quantization_config"] |= fields
    path.write_text(json.dumps(values))
    return folder

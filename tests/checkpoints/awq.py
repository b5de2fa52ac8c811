"""AWQ folders, each word made nibble by nibble from the layout's description alone."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from tests.checkpoints.gptq import CONFIG, Array, Matrix, module_of
from tests.checkpoints.writers import (
    HF_TOP,
    Tensors,
    half_split,
    random_tensors,
    write_huggingface,
)

#: The column, of the eight of a word, that each nibble holds.
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def _words(values: Array) -> torch.Tensor:
    """Values `[rows, columns]` to words `[rows, columns / 8]`."""
    words = np.zeros((values.shape[0], values.shape[1] // 8), np.uint64)
    for j in range(words.shape[1]):
        for i, column in enumerate(ORDER):
            words[:, j] |= values[:, 8 * j + column].astype(np.uint64) << np.uint64(4 * i)
    return torch.from_numpy(words.astype(np.uint32).view(np.int32))


def awq_parts(matrix: Matrix) -> Tensors:
    """The three tensors of a matrix whose columns are in order."""
    return {
        "qweight": _words(matrix.values.T),
        "qzeros": _words(matrix.zeros.T),
        "scales": torch.from_numpy(np.ascontiguousarray(matrix.scales.T)),
    }


def awq_fields(group: int = 32, **more: Any) -> dict[str, Any]:
    """`quantization_config` as AutoAWQ writes it."""
    told = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": group}
    return told | {"zero_point": True, "modules_to_not_convert": ["lm_head"]} | more


def write_awq(
    folder: Path,
    matrices: dict[str, Matrix],
    *,
    told: dict[str, Any] | None = None,
    change: Tensors | None = None,
) -> Path:
    """A folder with these matrices quantized, in Hugging Face's order of rows, the others float16.

    `change` is merged over the tensors of the file.
    """
    tensors = random_tensors(CONFIG, torch.float16)
    write_huggingface(folder, CONFIG, tensors, fields={"quantization_config": told or awq_fields()})
    named: Tensors = {}
    for name, tensor in tensors.items():
        if name in matrices:
            parts = awq_parts(matrices[name])
            named |= {f"{module_of(name)}.{part}": value for part, value in parts.items()}
        else:
            turned = name.endswith((".wq", ".wk"))
            stored = half_split(tensor, CONFIG.head_dim) if turned else tensor.clone()
            named[HF_TOP.get(name) or f"{module_of(name)}.weight"] = stored
    save_file(named | (change or {}), folder / "model.safetensors", metadata={"format": "pt"})
    return folder

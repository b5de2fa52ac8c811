"""Writing GGUF files, which llama.cpp reads.

Names and keys: `checkpoints.gguf_names`; blocks: `checkpoints.gguf_encode`.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from llama2gpu.checkpoints.base import Checkpoint, tensor_shapes
from llama2gpu.checkpoints.gguf_encode import BLOCK, FLOATS, encode, nbytes, own_form
from llama2gpu.checkpoints.gguf_fields import Fields, model_fields
from llama2gpu.checkpoints.gguf_names import ARCHITECTURE, NAMES, ROPE_FREQS, General
from llama2gpu.checkpoints.tally import Tally, parts
from llama2gpu.checkpoints.weights import Progress
from llama2gpu.config import Config
from llama2gpu.ops.rope import frequency_divisors
from llama2gpu.quant import Int4, Int8, Weight

_ALIGNMENT = 32
_QUANTIZATION_VERSION = 2


@dataclass(frozen=True)
class Forms:
    """What is asked for.

    dtype: of dense matrices. quant: one of `gguf_encode.BLOCKS`, for matrices whose columns fill
    blocks, the head in Q8_0; None keeps quantized matrices as they are, unless `dense`.
    """

    dtype: torch.dtype
    quant: str | None = None
    dense: bool = False


def write_gguf(
    checkpoint: Checkpoint,
    path: Path,
    forms: Forms,
    words: Fields,
    tally: Tally,
    progress: Progress,
) -> None:
    """Writes one file; `words` are the keys of its tokenizer.

    Memory: a tensor as it is stored. Raises `RequestError` for a model that the format can't hold,
    `OSError` where the disk is full, `CheckpointError` where a tensor can't be read.
    """
    extra = _extra_tensors(checkpoint.config)
    plan = dict(_plan(checkpoint, forms, tally))
    done, total = 0, sum(nbytes(shape, form) for shape, form in plan.values())
    fields = _fields(checkpoint, plan, words)
    _write_header(path, fields, plan | {n: (t.shape, "F32") for n, t in extra.items()})
    with path.open("ab") as file:
        _pad(file)
        for name, (shape, form) in plan.items():
            if len(shape) == 1:
                file.write(checkpoint.read(name).float().contiguous().numpy().data)
                tally.add(0.0, 0.0)
            else:
                tally.add(*_write_matrix(file, name, checkpoint.weight(name), form))
            _pad(file)
            done += nbytes(shape, form)
            progress(done, total)
        for tensor in extra.values():
            file.write(tensor.numpy().data)
            _pad(file)


def _extra_tensors(config: Config) -> dict[str, torch.Tensor]:
    if config.rope_scaling is None or config.rope_scaling.type != "llama3":
        return {}
    return {ROPE_FREQS: frequency_divisors(config)}


def _plan(
    checkpoint: Checkpoint, forms: Forms, tally: Tally
) -> Iterator[tuple[str, tuple[tuple[int, ...], str]]]:
    """Shape and form of each tensor, by canonical name; notes tell what stays or becomes dense."""
    head = "embed" if checkpoint.config.tied else "output"
    odd: list[str] = []
    lost: list[str] = []
    for name, shape in tensor_shapes(checkpoint.config):
        if len(shape) == 1:
            yield name, (shape, "F32")
            continue
        weight = None if checkpoint.quantization is None else checkpoint.weight(name)
        own = None if weight is None else own_form(weight)
        form = _form(forms, shape[1], own, head=name == head)
        yield name, (shape, form)
        if form in FLOATS.values() and forms.quant is not None:
            odd.append(name)
        elif form in FLOATS.values() and not forms.dense and isinstance(weight, Int4 | Int8):
            lost.append(name)
    tally.note_matrices(odd, f"dense, as {BLOCK} does not divide the columns")
    tally.note_matrices(lost, "made dense, as GGUF has no such groups or order of columns")


def _form(forms: Forms, columns: int, own: str | None, *, head: bool) -> str:
    """The form of a matrix, of which `own` would keep what is quantized."""
    dense = FLOATS[forms.dtype]
    if forms.quant is None:
        return dense if forms.dense else own or dense
    if columns % BLOCK:
        return dense
    return "Q8_0" if head and own != forms.quant else forms.quant


def _fields(
    checkpoint: Checkpoint, plan: Mapping[str, tuple[tuple[int, ...], str]], words: Fields
) -> dict[str, Any]:
    from gguf import LlamaFileType

    sizes = Counter[str]()
    for shape, form in plan.values():
        sizes[form] += math.prod(shape) if len(shape) == 2 else 0
    usual = sizes.most_common(1)[0][0]
    kind = LlamaFileType.ALL_F32 if usual == "F32" else LlamaFileType[f"MOSTLY_{usual}"]
    return {
        General.NAME: checkpoint.path.stem,
        General.FILE_TYPE: int(kind),
        General.QUANTIZATION_VERSION: _QUANTIZATION_VERSION,
        **model_fields(checkpoint.config),
        **words,
    }


def _write_header(
    path: Path, fields: Fields, tensors: Mapping[str, tuple[tuple[int, ...], str]]
) -> None:
    """All but the data. Integers are uint32, numbers float32, as llama.cpp reads them."""
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(path, ARCHITECTURE)
    add: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    try:
        for key, value in fields.items():
            add[type(value)](key, value)
        for name, (shape, form) in tensors.items():
            stored = name if name == ROPE_FREQS else NAMES(name)
            kind = GGMLQuantizationType[form]
            size = nbytes(shape, form)
            writer.add_tensor_info(stored, shape, np.dtype(np.float32), size, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % _ALIGNMENT))


def _write_matrix(file: BinaryIO, name: str, weight: Weight, form: str) -> tuple[float, float]:
    """Gives the squares of the errors and of the values."""
    lost = total = 0.0
    for part in parts(weight):
        data, error, size = encode(name, part, form)
        file.write(data.data)
        lost, total = lost + error, total + size
    return lost, total

"""Writing llama2.c's files, which its `run` (version 0) and `runq` (version 2) read.

Layouts: `checkpoints.llama2c`.
"""

import math
from pathlib import Path
from typing import BinaryIO

import torch

from llama2gpu.checkpoints.base import Checkpoint, tensor_shapes
from llama2gpu.checkpoints.flat import Flat, tensor_name
from llama2gpu.checkpoints.llama2c import flat_of, header_bytes
from llama2gpu.checkpoints.tally import Tally, as_int8, parts, squares
from llama2gpu.checkpoints.weights import Progress
from llama2gpu.config import Config
from llama2gpu.errors import RequestError
from llama2gpu.ops.rope import rope_table
from llama2gpu.quant import Int8, Weight
from llama2gpu.quant.quantize import checked_peak

VERSIONS = (0, 1, 2)

#: What the programs compute with, whatever the model was trained with.
_ROPE_THETA, _NORM_EPS = 10000.0, 1e-5
#: Values that share a scale, where the model's sizes allow.
_GROUP = 64
#: Positions of RoPE's tables that are made at a time.
_POSITIONS = 1 << 14


def write_llama2c(
    checkpoint: Checkpoint, path: Path, version: int, tally: Tally, progress: Progress
) -> None:
    """Writes one file: float32 in versions 0 and 1, int8 and float32 scales in version 2.

    Memory: a tensor as it is stored. Raises `RequestError` for a model that the format can't hold,
    `OSError` where the disk is full, `CheckpointError` where a tensor can't be read.
    """
    config = checkpoint.config
    check_llama2c(config)
    flat = flat_of(version, config, group_of(checkpoint) if version == 2 else 0)
    if 0 < flat.group < _GROUP:
        tally.notes.append(
            f"scales are of {flat.group} values, not {_GROUP}: runq needs groups that divide dim "
            f"{config.dim} and hidden {config.hidden}, and those of quantized matrices are kept"
        )
    done, total = 0, config.parameters
    with path.open("wb") as file:
        file.write(header_bytes(version, flat))
        for kind, count, shape in flat.runs():
            for n in range(count):
                _write_tensor(file, checkpoint, tensor_name(kind, n), flat, tally)
                done += 0 if kind == "tables" else math.prod(shape)
                progress(done * 4, total * 4)


def check_llama2c(config: Config) -> None:
    """Raises `RequestError` for a model that llama2.c would run wrongly."""
    c = config
    if c.rope_scaling is not None:
        _refuse(f"RoPE scaling ({c.rope_scaling.type})", "give --to hf or gguf")
    if c.rope_theta != _ROPE_THETA:
        _refuse(
            f"a rope_theta of {c.rope_theta:g}: its programs compute with {_ROPE_THETA:g}",
            f"give --to hf or gguf, or --rope-theta {_ROPE_THETA:g} where it is wrong",
        )
    if not math.isclose(c.norm_eps, _NORM_EPS, rel_tol=1e-6):
        _refuse(
            f"a norm_eps of {c.norm_eps:g}: its programs compute with {_NORM_EPS:g}",
            f"give --to hf or gguf, or --norm-eps {_NORM_EPS:g} to have it run so",
        )
    if c.head_dim * c.heads != c.dim:
        _refuse(
            f"{c.heads} heads of {c.head_dim} in a dim of {c.dim}: heads fill dim there",
            "give --to hf or gguf",
        )


def _refuse(what: str, remedy: str) -> None:
    raise RequestError(f"llama2.c's files hold no {what}; {remedy}")


def group_of(checkpoint: Checkpoint) -> int:
    """Values of a scale in version 2: the most that divide the columns of every matrix.

    runq wants that. Groups of the matrices that are quantized are divided too, so that they fit.
    """
    config = checkpoint.config
    group = math.gcd(_GROUP, config.dim, config.hidden)
    if checkpoint.quantization is not None:
        for name, shape in tensor_shapes(config):
            weight = as_int8(checkpoint.weight(name)) if len(shape) == 2 else None
            group = math.gcd(group, weight.group) if isinstance(weight, Int8) else group
    return group


def _write_tensor(
    file: BinaryIO, checkpoint: Checkpoint, name: str, flat: Flat, tally: Tally
) -> None:
    if name == "tables":
        for which in (0, 1):
            _write_table(file, flat.config, which)
        return
    if name.endswith("norm"):
        _write(file, checkpoint.read(name).float())
        tally.add(0.0, 0.0)
    elif flat.bits == 8:
        tally.add(*_write_int8(file, name, checkpoint.weight(name), flat.group))
    else:
        for part in parts(checkpoint.weight(name)):
            _write(file, part.dequantize(torch.float32))
        tally.add(0.0, 0.0)


def _write_table(file: BinaryIO, config: Config, which: int) -> None:
    """RoPE's cosines, 0, or its sines, 1; a header may claim a context of 2³⁰ positions."""
    for start in range(0, config.context, _POSITIONS):
        stop = min(start + _POSITIONS, config.context)
        _write(file, rope_table(config, stop, start)[which])


def _write(file: BinaryIO, tensor: torch.Tensor) -> None:
    file.write(tensor.contiguous().numpy().data)


def _write_int8(file: BinaryIO, name: str, weight: Weight, group: int) -> tuple[float, float]:
    """The integers, then all scales; gives the squares of the errors and of the values."""
    scales = []
    lost = total = 0.0
    for part in parts(weight):
        found = _int8(name, part, group)
        _write(file, found.data)
        scales.append(found.scales)
        values = part.dequantize(torch.float32)
        lost += squares(found.dequantize(torch.float32) - values)
        total += squares(values)
    for scale in scales:
        _write(file, scale)
    return lost, total


def _int8(name: str, weight: Weight, group: int) -> Int8:
    """Rows in groups with float32 scales; integers in groups that fit are kept."""
    weight = as_int8(weight)
    if isinstance(weight, Int8) and weight.group % group == 0:
        scales = weight.scales.float().repeat_interleave(weight.group // group, 1)
        return Int8(weight.data, scales)
    values = weight.dequantize(torch.float32)
    try:
        checked_peak(values)
    except RequestError as problem:
        raise RequestError(f"{name}: {problem}") from problem
    groups = values.view(len(values), -1, group)
    scales = groups.abs().amax(-1) / 127
    steps = groups / torch.where(scales > 0, scales, 1)[..., None]
    return Int8(steps.round().to(torch.int8).view(values.shape), scales)

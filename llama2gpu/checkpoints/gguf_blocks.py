"""GGUF's tensors as weights: its blocks stay integers where `Int4` and `Int8` can hold them.

Q4_0 is a block of 32 columns: a float16 scale, then 16 bytes whose low nibbles are the first half
and whose high nibbles the second, each a value + 8. Q8_0: a float16 scale and 32 int8. All other
types (Q4_1, whose blocks have a minimum of their own, among them) are dequantized to float32 by the
`gguf` package.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from llama2gpu.checkpoints.files import typed
from llama2gpu.checkpoints.gguf_header import Blocks
from llama2gpu.checkpoints.stored import FLOATS, Stored
from llama2gpu.errors import CheckpointError, UnsupportedModelError
from llama2gpu.quant import Dense, Int4, Int8, Weight
from llama2gpu.quant.pack import UNIT, pack_int4

_DENSE = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
#: Values that are converted at a time; what that takes in memory is a few times as many bytes.
_BLOCK = 1 << 20


def stored(path: Path, blocks: Blocks) -> Stored:
    """A tensor whose data is read when it is asked for.

    Raises `UnsupportedModelError` for a type that the `gguf` package can't dequantize.
    """
    kind, shape = blocks.kind.name, blocks.shape
    if kind in _DENSE:
        load = partial(_dense, blocks, FLOATS[_DENSE[kind]])
        return Stored(blocks.name, shape, _DENSE[kind], blocks.data.nbytes, load)
    _check_known(path, blocks)
    size, fill = blocks.data.nbytes, partial(_dequantize, blocks)
    load = partial(_dequantized, blocks)
    if kind not in _PACKED or len(shape) != 2:
        return Stored(blocks.name, shape, kind, size, load, lambda: Dense(load()), fill=fill)
    held, pack = _PACKED[kind]
    return Stored(blocks.name, shape, kind, size, load, partial(pack, path, blocks), held, fill)


def kinds_of(tensors: Iterable[Stored]) -> str | None:
    """How matrices are quantized, for people: types by the bytes they take; None where none is."""
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.dtype not in FLOATS:
            sizes[tensor.dtype] += tensor.nbytes
    return " and ".join(kind for kind, _ in sizes.most_common()) or None


def _check_known(path: Path, blocks: Blocks) -> None:
    import gguf

    _, nbytes = gguf.GGML_QUANT_SIZES[blocks.kind]
    try:
        gguf.dequantize(np.zeros((1, nbytes), np.uint8), blocks.kind)
    except NotImplementedError:
        raise UnsupportedModelError(
            f"{path}: {blocks.name[:80]} is {blocks.kind.name}, which the gguf package can't "
            "dequantize: give the model in another type"
        ) from None


def _dense(blocks: Blocks, dtype: torch.dtype) -> torch.Tensor:
    return typed(blocks.data, dtype).view(blocks.shape)


def _dequantized(blocks: Blocks) -> torch.Tensor:
    out = torch.empty(blocks.shape, dtype=torch.float32)
    _dequantize(blocks, out)
    return out


def _dequantize(blocks: Blocks, out: torch.Tensor) -> None:
    import gguf

    rows = blocks.shape[0] if len(blocks.shape) == 2 else 1
    data, matrix = blocks.data.view(rows, -1).numpy(), out.view(rows, blocks.shape[-1])
    for some in _rows(rows, blocks.shape[-1]):
        with np.errstate(all="ignore"):  # of damaged scales
            matrix[some] = torch.from_numpy(gguf.dequantize(data[some], blocks.kind))


def _int8(path: Path, blocks: Blocks) -> Int8:
    (rows, columns), group = blocks.shape, 32
    parts = blocks.data.view(rows, columns // group, 2 + group)
    data = parts[:, :, 2:].reshape(rows, columns).view(torch.int8)
    return Int8(data, _scales(path, blocks, parts))


def _int4(path: Path, blocks: Blocks) -> Int4:
    rows, columns = blocks.shape
    parts = blocks.data.view(rows, columns // UNIT, 2 + UNIT // 2)
    packed = torch.empty(rows, columns // 8, dtype=torch.int32)
    for some in _rows(rows, columns):
        nibbles = parts[some, :, 2:]
        values = torch.cat((nibbles & 15, nibbles >> 4), 2)
        packed[some] = pack_int4(values.view(-1, columns))
    return Int4(packed, _scales(path, blocks, parts))


def _scales(path: Path, blocks: Blocks, parts: torch.Tensor) -> torch.Tensor:
    """The float16 scales `[N, groups]` at the start of blocks `[N, groups, bytes]`."""
    scales = parts[:, :, :2].contiguous().view(torch.float16).squeeze(2)
    if not bool(scales.isfinite().all()):
        raise CheckpointError(
            f"{path}: the scales of {blocks.name[:80]} hold NaN or infinity: "
            "it is damaged, download it again"
        )
    return scales


def _rows(rows: int, columns: int) -> Iterator[slice]:
    step = max(_BLOCK // max(columns, 1), 1)
    return (slice(start, start + step) for start in range(0, rows, step))


#: What the blocks of these types become.
_PACKED: dict[str, tuple[str, Callable[[Path, Blocks], Weight]]] = {
    "Q4_0": ("int4", _int4),
    "Q8_0": ("int8", _int8),
}

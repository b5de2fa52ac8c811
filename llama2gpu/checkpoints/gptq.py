"""Hugging Face folders in GPTQ's or AWQ's layout: some tensors stand for one matrix of 4 or 8 bits.

`qweight` int32 `[K·bits/32, N]`, `qzeros` int32 `[K/g, N·bits/32]`, `scales` `[K/g, N]` and `g_idx`
int32 `[K]`, the group of each column; the low bits of a word come first. The value of column k of
row n is `(q − zero) · scale` of group `g_idx[k]`. Layout: AutoGPTQ and GPTQModel, whose format
"gptq" stores zero points less 1 and "gptq_v2" as they are. AWQ's `qweight` is `[K, N/8]`, in words
along the rows like those of `qzeros`, and there is no `g_idx`; layout: AutoAWQ's version "gemm".

Matrices stay packed wherever `Int4` and `Int8` can hold them. The others become dense: 4-bit
columns or groups that are no multiple of 32, groups of unequal size, 8-bit zero points besides 128,
8-bit columns in another order.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from llama2gpu.checkpoints.base import tensor_shapes
from llama2gpu.checkpoints.gptq_pack import awq_in_order, from_awq, to_units, unpack, unpack_zeros
from llama2gpu.checkpoints.quantization_config import Layout
from llama2gpu.checkpoints.stored import FLOATS, NameTable, Stored
from llama2gpu.config import Config
from llama2gpu.errors import CheckpointError, UnsupportedModelError
from llama2gpu.quant import Dense, Int4, Int8, Weight
from llama2gpu.quant.pack import UNIT, pack_int4, unpack_int4
from llama2gpu.quant.weight import MIDDLE

PARTS = ("qweight", "qzeros", "scales", "g_idx", "bias")
_OPTIONAL = ("g_idx", "bias")
#: Values that are repacked at a time; what that takes in memory is a few times as many bytes.
_BLOCK = 1 << 22


def join_parts(
    path: Path, config: Config, layout: Layout, found: Mapping[str, Stored], names: NameTable
) -> dict[str, Stored]:
    """The tensors of a folder with those that make up a matrix put together, under its name.

    Raises `CheckpointError` for parts that are missing or do not fit each other or the model,
    from their headers alone.
    """
    joined = dict(found)
    dense = next((found[n] for n in map(names, ("embed", "norm")) if n in found), None)
    dtype = FLOATS.get(dense.dtype if dense else "", torch.float16)
    for canonical, shape in tensor_shapes(config):
        name = names(canonical)
        module = name.removesuffix(".weight")
        parts = {p: joined.pop(f"{module}.{p}") for p in PARTS if f"{module}.{p}" in joined}
        if "qweight" not in parts:
            joined |= {part.name: part for part in parts.values()}
        elif len(shape) != 2 or name in joined:
            raise CheckpointError(f"{path} holds {module} twice: its files are not of one model")
        else:
            joined[name] = _Matrix(path, module, shape, layout, parts, dtype).stored(name)
    return joined


@dataclass(frozen=True)
class _Matrix:
    """One quantized matrix of a folder; `dtype` is what it has where it becomes dense."""

    path: Path
    module: str
    shape: tuple[int, ...]
    layout: Layout
    parts: Mapping[str, Stored]
    dtype: torch.dtype

    def stored(self, name: str) -> Stored:
        """The matrix under its name, once its headers are found to fit."""
        self._check()
        nbytes = sum(part.nbytes for part in self.parts.values())
        kind = f"int{self.bits}"
        return Stored(name, self.shape, kind, nbytes, self._dense, self.weight, kind)

    @property
    def bits(self) -> int:
        """Bits of a value: of the folder, or as the height of `qweight` tells."""
        if not self.layout.mixed:
            return self.layout.bits
        return 8 if self.parts["qweight"].shape[:1] == (self.shape[1] // 4,) else 4

    @property
    def groups(self) -> int:
        """Groups of a row: as the folder says, or as many as there are rows of scales."""
        scales = self.parts["scales"].shape
        told = self.layout.mixed and scales and 0 < scales[0] <= self.shape[1]
        return scales[0] if told else self.layout.groups(self.shape[1])

    def _check(self) -> None:
        missing = [p for p in PARTS if p not in self.parts and p not in _OPTIONAL]
        if missing:
            raise CheckpointError(
                f"{self.path} lacks {self.module}.{missing[0]}: the download is incomplete"
            )
        rows, columns = self.shape
        if rows * self.bits % 32 or columns * self.bits % 32:
            self._damaged(f"{rows} × {columns} can't be packed into {self.bits} bits")
        words = columns * self.bits // 32, rows
        wanted = {
            "qweight": (columns, rows * self.bits // 32) if self.layout.awq else words,
            "qzeros": (self.groups, rows * self.bits // 32),
            "scales": (self.groups, rows),
            "g_idx": (columns,),
            "bias": (rows,),
        }
        for name, part in self.parts.items():
            types = (*FLOATS,) if name in ("scales", "bias") else ("int32",)
            if part.shape != wanted[name] or part.dtype not in types:
                self._damaged(
                    f"{name} is {part.dtype} {list(part.shape)}, but the configuration makes it "
                    f"{types[0]} {list(wanted[name])}"
                )

    def _damaged(self, what: str) -> None:
        raise CheckpointError(
            f"{self.path}: {self.module}: {what}: its files are not of one model, or are damaged"
        )

    def _dense(self) -> torch.Tensor:
        return self.weight().dequantize(self.dtype)

    def weight(self) -> Weight:
        """The matrix, packed where that can be, its rows in the order of the file."""
        scales, order = self._scales(), None
        groups = self._groups_of_columns()
        if groups is not None:
            sizes = torch.bincount(groups, minlength=self.groups)
            if bool((sizes != sizes[0]).any()):
                return self._by_column(scales, groups)
            order = groups.argsort(stable=True)
        packed = self._int4(scales, order) if self.bits == 4 else self._int8(scales, order)
        if packed is not None:
            return packed
        if groups is None:
            groups = torch.arange(self.shape[1]) // (self.shape[1] // self.groups)
        return self._by_column(scales, groups)

    def _scales(self) -> torch.Tensor:
        """Scales `[N, groups]`."""
        if "bias" in self.parts and bool(self.parts["bias"].load().any()):
            raise UnsupportedModelError(
                f"{self.path}: {self.module} has a bias, which is not supported: "
                "give a model without biases"
            )
        scales = self.parts["scales"].load().T.contiguous()
        if not bool(scales.isfinite().all()):
            self._damaged("its scales hold NaN or infinity")
        return scales

    def _groups_of_columns(self) -> torch.Tensor | None:
        """Group of each column, int64 `[K]`; None where group is `k // (K / groups)`.

        All zeros, which some old writers left there, say nothing.
        """
        columns, size = self.shape[1], -(-self.shape[1] // self.groups)
        if not self.layout.mixed and 0 < self.layout.group < columns:
            size = self.layout.group
        plain = torch.arange(columns) // size
        groups = self.parts["g_idx"].load().long() if "g_idx" in self.parts else plain
        if bool(((groups < 0) | (groups >= self.groups)).any()):
            self._damaged(f"g_idx names other groups than 0 to {self.groups - 1}")
        even = size * self.groups == columns
        if even and (torch.equal(groups, plain) or not bool(groups.any())):
            return None
        return groups if bool(groups.any()) else plain

    def _zeros(self) -> torch.Tensor:
        """Zero points, uint8 `[N, groups]`; the sum of a stored one and 1 has `bits` bits."""
        words = self.parts["qzeros"].load().contiguous()
        stored = unpack_zeros(awq_in_order(words) if self.layout.awq else words, self.bits)
        return ((stored + self.layout.offset) & ((1 << self.bits) - 1)).T.contiguous()

    def _int4(self, scales: torch.Tensor, order: torch.Tensor | None) -> Int4 | None:
        rows, columns = self.shape
        if columns % UNIT or columns // self.groups % UNIT:
            return None
        packed = torch.empty(rows, columns // 8, dtype=torch.int32)
        for block, words in self._blocks():
            packed[block] = to_units(words)
            if order is not None:
                packed[block] = pack_int4(unpack_int4(packed[block])[:, order])
        zeros = self._zeros()
        plain = bool((zeros == MIDDLE).all())
        return Int4(packed, scales, None if plain else zeros, order)

    def _int8(self, scales: torch.Tensor, order: torch.Tensor | None) -> Int8 | None:
        if order is not None or bool((self._zeros() != 128).any()):
            return None
        data = torch.empty(*self.shape, dtype=torch.int8)
        for block, words in self._blocks():
            values = unpack(words, 8)
            data[block] = (values ^ 128).view(torch.int8)
        return Int8(data, scales)

    def _by_column(self, scales: torch.Tensor, groups: torch.Tensor) -> Dense:
        """The definition itself, for what has no packed form."""
        zeros, data = self._zeros(), torch.empty(*self.shape, dtype=self.dtype)
        for block, words in self._blocks():
            values = unpack(words, self.bits).float() - zeros[block][:, groups]
            data[block] = values * scales[block].float()[:, groups]
        return Dense(data)

    def _blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Rows of the matrix a block at a time, and these columns of GPTQ's `qweight`."""
        words = self.parts["qweight"].load()
        step = max(_BLOCK // self.shape[1] // 8, 1) * 8  # a word of AWQ's has 8 rows
        for start in range(0, self.shape[0], step):
            block = slice(start, start + step)
            if self.layout.awq:
                yield block, from_awq(words[:, start // 8 : (start + step) // 8])
            else:
                yield block, words[:, block].contiguous()

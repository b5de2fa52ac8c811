"""How matrix kernels are cut into programs: a table by architecture and shape, and who reads it.

What `llama2gpu kernels tune` found for a matrix on a device wins over the table (`tuned.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from llama2gpu.kernels.arch import ARCHS, Arch
from llama2gpu.kernels.launch import INTERPRETED, Plan
from llama2gpu.kernels.packed import Packed

#: Rows of a program in the interpreter, where each program takes milliseconds.
INTERPRETER_ROWS = 64

#: Most tokens that a matrix kernel is made for; more go to the vendor's matrix product.
FEW = 64


class Use(NamedTuple):
    """A matrix and a number of tokens, as far as the tile depends on them.

    bits: of a value. group: columns that share a scale. columns: as they are stored. tokens: the
    most of its bucket: 1, 16, 32 or 64.
    """

    arch: str
    bits: int
    group: int
    rows: int
    columns: int
    tokens: int

    @property
    def width(self) -> int:
        """Bytes of what a block counts: a word, or of a dense row a column."""
        return 4 if self.bits <= 8 else self.bits // 8

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.columns * self.bits // 8

    @property
    def widest(self) -> int:
        """The largest block that a row has use for."""
        least = 4 if self.tokens == 1 else 16
        return max(_power_of_two(self.row_bytes // self.width), least)


class Tile(NamedTuple):
    """What is chosen for a use. block: of a packed row words, of a dense one columns."""

    block_n: int
    block: int
    num_warps: int
    num_stages: int = 1


@dataclass(frozen=True)
class Tiling:
    """The tile of one program, and the warps that share it.

    block_m: tokens; 1 sums in registers, 16 and more are for tensor cores. block_n: rows, even.
    block: of a packed row words, of a dense one columns. pdl: see `Plan`. denormals: whether one
    token takes packed values where they lie in their word.
    """

    block_m: int
    block_n: int
    block: int
    num_warps: int
    pdl: bool = False
    denormals: bool = True
    num_stages: int = 1


class Shipped(NamedTuple):
    """A line of the table: a tile, and for which uses.

    span: bytes of a row that a program takes at once. many: of several tokens, or of one. arch:
    how its name begins. rows, row_bytes: at least. group: divides the use's.
    """

    bits: tuple[int, ...]
    many: bool
    block_n: int
    span: int
    num_warps: int
    num_stages: int = 1
    arch: str = ""
    rows: int = 0
    row_bytes: int = 0
    group: int = 1

    def serves(self, use: Use) -> bool:
        """Whether the line is for a use."""
        return (
            use.bits in self.bits
            and (use.tokens > 1) == self.many
            and use.arch.startswith(self.arch)
            and use.rows >= self.rows
            and use.row_bytes >= self.row_bytes
            and use.group % self.group == 0
        )


_PACKED, _DENSE = (4, 8), (16, 32)

#: The first line that serves a use counts. A warp loads 512 bytes of one row at once, 16 a lane:
#: any other span puts warps along rows. 16 packed rows share what the activations cost, and keep a
#: GPU busy from 4096 rows on; dense ones need more registers each. Tensor cores take 16 words.
SHIPPED = (
    Shipped(_PACKED, False, block_n=16, span=1024, num_warps=2, rows=4096, row_bytes=1024),
    Shipped(_PACKED, False, block_n=16, span=512, num_warps=1, rows=4096),
    Shipped((*_PACKED, *_DENSE), False, block_n=8, span=1024, num_warps=2, row_bytes=1024),
    Shipped((*_PACKED, *_DENSE), False, block_n=8, span=512, num_warps=1),
    Shipped((4,), True, block_n=64, span=64, num_warps=4, num_stages=2, group=128),
    Shipped((8,), True, block_n=64, span=128, num_warps=4, num_stages=2, group=128),
    Shipped((4,), True, block_n=64, span=128, num_warps=4, num_stages=2),
    Shipped((8,), True, block_n=64, span=256, num_warps=4, num_stages=2),
    Shipped(_DENSE, True, block_n=64, span=128, num_warps=4, num_stages=2),
)

#: No use is tuned.
UNTUNED: Mapping[Use, Tile] = MappingProxyType({})


def use_of(arch: Arch, matrix: Packed, tokens: int) -> Use:
    """The use of a matrix with so many tokens on an architecture."""
    bucket = 1 if tokens <= 1 else max(16, min(_power_of_two(tokens), FEW))
    return Use(arch.name, matrix.bits, matrix.group, matrix.shape[0], matrix.columns, bucket)


@cache
def shipped_tile(use: Use) -> Tile:
    """What the table says."""
    line = next(line for line in SHIPPED if line.serves(use))
    block = line.span // use.width
    block = block if line.many else min(block, use.widest)
    return Tile(line.block_n, block, line.num_warps, line.num_stages)


def tiling_for(
    arch: Arch,
    matrix: Packed,
    tokens: int,
    denormals: bool = True,
    tuned: Mapping[Use, Tile] = UNTUNED,
) -> Tiling:
    """The tiling of a matrix and so many tokens on an architecture: tuned, or else shipped."""
    use = use_of(arch, matrix, tokens)
    tile = tuned.get(use) or shipped_tile(use)
    if INTERPRETED and use.tokens == 1 and use.rows >= 4 * INTERPRETER_ROWS:
        tile = tile._replace(block_n=INTERPRETER_ROWS)
    in_place = denormals or use.tokens > 1  # of no meaning there
    block_n, block, num_warps, num_stages = tile
    return Tiling(use.tokens, block_n, block, num_warps, arch.pdl, in_place, num_stages)


def misfit(use: Use, tile: Tile) -> str:
    """Why a kernel can't take a tile, in words; "" where nothing speaks against it.

    Shared memory and registers are only estimated: whether it compiles is for a device to say.
    """
    arch, one = ARCHS[use.arch], use.tokens == 1
    lanes = arch.target.warp_size * tile.num_warps
    held = tile.block if one else use.tokens  # values of each row
    stored = tile.num_stages * tile.block_n * tile.block * use.width
    if any(number < 1 or number & number - 1 for number in tile[:3]):
        return "its sizes are no powers of two"
    if not (2 if one else 16) <= tile.block_n <= 256:
        return f"{tile.block_n} rows"
    if not (4 if one else 16) <= tile.block <= use.widest:
        return f"blocks of {tile.block} where a row has {use.row_bytes // use.width}"
    if tile.num_warps > 16 or not 1 <= tile.num_stages <= 5:
        return f"{tile.num_warps} warps and {tile.num_stages} stages"
    if tile.block_n * held > 128 * lanes:
        return "too many values for the registers"
    return "too much shared memory" if not one and stored > arch.shared else ""


def plan_matrix(
    matrix: Packed, tokens: int, tiling: Tiling, has_norm: bool, **constants: Any
) -> Plan:
    """The plan of a kernel on a matrix with so many tokens."""
    rows, columns = matrix.shape
    grid = (-(-rows // tiling.block_n), -(-tokens // tiling.block_m))
    shared = {
        "K": columns,
        "COLUMNS": matrix.columns,
        "GROUP": matrix.group,
        "BITS": matrix.bits,
        "HAS_ZEROS": matrix.zeros is not None,
        "HAS_NORM": has_norm,
        "BLOCK_M": tiling.block_m,
        "BLOCK_N": tiling.block_n,
        "BLOCK": tiling.block,
        "DENORMALS": tiling.denormals,
        "PDL": tiling.pdl,
    }
    return Plan(grid, shared | constants, tiling.num_warps, tiling.num_stages, tiling.pdl)


def matrix_arguments(matrix: Packed) -> dict[str, torch.Tensor | None]:
    """The pointers of a matrix that every matrix kernel takes."""
    return {"p_w": matrix.data, "p_scales": matrix.scales, "p_zeros": matrix.zeros}


def _power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()

"""How a decode attention launch is cut into programs: by shapes, types and architecture alone."""

import torch
import triton
import triton.language as tl

from llama2gpu.kernels.arch import Arch
from llama2gpu.kernels.attention_cache import operand
from llama2gpu.kernels.launch import INTERPRETED, Plan
from llama2gpu.kernels.splits import TILE

#: Warps of a program, and keys that a warp takes at a time; together the tokens of a tile.
WARPS = 4
KEYS = TILE // WARPS
#: Query heads of a program: columns of a tensor core's tile, or two; and what registers hold.
COLUMNS, PLAIN_HEADS = 8, 4
#: Outputs that each thread holds of the parts that it adds up at a time.
PARTS_A_THREAD = 64


def plan_decode(
    sequences: int, heads: int, kv_heads: int, head_dim: int, page: int, dtype: torch.dtype,
    kv_dtype: torch.dtype, arch: Arch, splits: int, pdl: bool = False,
) -> Plan:  # fmt: skip
    """A program for each sequence, block of a key-value head's query heads, and split.

    dtype: of queries and output; kv_dtype: of the cache, the same or int8.
    """
    group, block_d = heads // kv_heads, max(16, triton.next_power_of_2(head_dim))
    dot = _takes_dots(head_dim, dtype, kv_dtype, arch)
    block_g = _heads_of_program(group, block_d, dot, arch)
    partial_g = min(block_g, triton.next_power_of_2(group))
    parts = PARTS_A_THREAD * WARPS * 32 // (partial_g * block_d)
    words = dot and kv_dtype == torch.int8 and _takes_words(head_dim, dtype, arch)
    lane = 16 // kv_dtype.itemsize
    pdl = pdl and arch.pdl and not INTERPRETED
    constants = {
        "KV_HEADS": kv_heads, "GROUP": group, "HEAD_DIM": head_dim, "PAGE": page, "SPLITS": splits,
        "BLOCK_G": block_g, "PARTIAL_G": partial_g, "BLOCK_D": block_d, "W": WARPS,
        "KEYS": KEYS if dot else KEYS // 2, "K_LANE": min(lane, block_d // 4),
        "V_LANE": min(lane, block_d // 8), "RUN": 4 // kv_dtype.itemsize if dot else 2,
        "OPERAND": operand(dtype) if dot else tl.float32, "WORDS": words, "DOT": dot,
        "TURN": arch.name == "gfx942", "CHUNK": max(1, min(splits, parts)), "PDL": pdl,
    }  # fmt: skip
    blocks = triton.cdiv(group, block_g)
    return Plan((sequences, kv_heads * blocks, splits), constants, num_warps=WARPS, pdl=pdl)


def _takes_dots(head_dim: int, dtype: torch.dtype, kv_dtype: torch.dtype, arch: Arch) -> bool:
    """Whether the products are the tensor cores', which would round float32.

    RDNA's take their operands twice, in both halves of a warp: long heads have no room.
    """
    if dtype == torch.float32 or arch.name != "gfx1100":
        return dtype != torch.float32
    return head_dim <= 64 or (head_dim == 128 and kv_dtype == dtype)


def _takes_words(head_dim: int, dtype: torch.dtype, arch: Arch) -> bool:
    """Whether codes are unpacked in words, which spares conversions at a quarter of the rate.

    From sm_90 on the compiler itself has a way for bfloat16.
    """
    converts = dtype == torch.float16 or arch.name in ("sm_80", "sm_86", "sm_89")
    return converts and arch.is_cuda and head_dim % 4 == 0 and head_dim > 16


def _heads_of_program(group: int, block_d: int, dot: bool, arch: Arch) -> int:
    """Query heads of a program: a power of two."""
    if not dot:
        return max(1, min(PLAIN_HEADS, 256 // block_d, int(triton.next_power_of_2(group))))
    if arch.name == "gfx942":
        return 2 * COLUMNS
    return COLUMNS if group <= COLUMNS or block_d > 128 or not arch.is_cuda else 2 * COLUMNS

"""What a compiled kernel is made of: registers, loads, barriers, and instructions for each weight.

What is counted is the hot loop: of all loops the one that itself loads the most bytes of the
streamed arguments. A kernel whose columns fit in one tile has none; then all of it is counted.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llama2gpu.measure.listing import Instruction, Listing, parse_amdgcn, parse_llir, parse_sass
from llama2gpu.measure.streams import Load, find_loads, repeats

if TYPE_CHECKING:
    from llama2gpu.kernels.machine_code import MachineCode

#: Blocks that a multiprocessor takes at most, where it is not 32.
_BLOCKS = {"sm_86": 16, "sm_89": 24, "sm_120": 24}
#: Shared memory that CUDA takes for itself, of each block and of the multiprocessor.
_RESERVED = 1 << 10
#: SIMDs of a unit, and the steps in which a lane's registers are given out.
_PARTITIONS = {"gfx1100": (2, 24)}
_MATRIX = re.compile(r"[HIQOD]MMA|[HIQ]GMMA|UTC[HIQO]+MMA|v_(?:s?mfmac?|s?wmmac?)_")
#: Bits by how AMD's loads end.
_AMD_BITS = {"dword": 32, "dwordx2": 64, "dwordx3": 96, "dwordx4": 128}


@dataclass(frozen=True)
class Stream:
    """A tensor that a kernel may read.

    bits: of one value in it, which is less than an element where values are packed.
    """

    nbytes: int
    bits: int


@dataclass(frozen=True)
class Binary:
    """The make of one compiled kernel.

    warps_per_sm: what registers, shared memory and the hardware's limits leave room for.
    load_bits: of the narrowest load of a streamed argument in the hot loop, 0 where there is none;
    one element loaded alone shows. barriers_in_loop: of the whole block, 0 without a loop.
    matrix_op: "HMMA", "HGMMA", "UTCHMMA", "MFMA", "WMMA" …, or "". loop_instructions: of the hot
    loop; where has_loop is false, of the kernel. On AMD those of the scalar unit are left out.
    values: what a block reads of the streamed arguments meanwhile. instr_per_weight: instructions
    of one lane for each of them, or None where that can't be told.
    """

    registers: int
    spill_bytes: int
    shared_bytes: int
    shared_limit: int
    warps_per_sm: int
    load_bits: int
    barriers_in_loop: int
    matrix_op: str
    has_loop: bool
    loop_instructions: int
    values: float
    instr_per_weight: float | None


@dataclass(frozen=True)
class _Body:
    """The instructions that are counted, and the loads of LLVM's form that they come from.

    copies: how many rounds of the source's loop one round holds, since the compiler unrolls.
    """

    instructions: tuple[Instruction, ...]
    has_loop: bool
    loads: tuple[Load, ...]
    copies: int


def read_binary(
    code: "MachineCode", streams: Mapping[str, Stream], values_per_block: float | None = None
) -> Binary:
    """Takes a compiled kernel apart.

    streams: the tensors among its arguments, by name. Streamed are those that it loads
    and that hold at least half as many bytes as the largest of these: the matrix, or keys and
    values. values_per_block: what a block has to read of them in all, if known; a kernel without
    a loop, whose tile is wider than the matrix, is so held to the values that exist.
    """
    amd = code.arch.name.startswith("gfx")
    listing = parse_amdgcn(code.assembly) if amd else parse_sass(code.assembly)
    body = _body(listing, code, streams)
    loads = _streamed(body.loads, streams)
    opcodes = [made.opcode for made in body.instructions]
    count = sum(not (amd and name.startswith("s_")) and name != "NOP" for name in opcodes)
    values = body.copies * _values(code, loads, streams)
    if values_per_block and not body.has_loop:
        values = min(values, values_per_block) or values_per_block
    widest = max(map(load_bits, opcodes), default=0)
    return Binary(
        registers=code.registers,
        spill_bytes=code.spill_bytes,
        shared_bytes=code.shared_bytes,
        shared_limit=code.arch.shared,
        warps_per_sm=warps_per_sm(code),
        load_bits=min([widest, *(load.bits for load in loads)]) if loads else 0,
        barriers_in_loop=sum(map(is_barrier, opcodes)) if body.has_loop else 0,
        matrix_op=_matrix_op(listing),
        has_loop=body.has_loop,
        loop_instructions=count,
        values=values,
        instr_per_weight=count * code.lanes * code.warps / values if values else None,
    )


def _body(listing: Listing, code: "MachineCode", streams: Mapping[str, Stream]) -> _Body:
    """The hot loop; or all of a kernel that streams in no loop, or whose loop was unrolled."""
    form = parse_llir(code.llir)
    loads = find_loads(code.llir, form, code.parameters)
    source = hot_loop(form, {load.at: load.bits for load in _streamed(loads, streams)})
    loop = hot_loop(listing, {i: load_bits(x.opcode) for i, x in enumerate(listing.instructions)})
    inside = tuple(load for load in loads if source is not None and load.at in source)
    if inside and loop is not None:
        instructions = tuple(listing.instructions[i] for i in sorted(loop))
        found = sum(load_bits(made.opcode) > 0 for made in instructions)
        if 2 * found >= len(inside):
            return _Body(instructions, True, inside, max(1, round(found / len(inside))))
    found = sum(load_bits(made.opcode) > 0 for made in listing.instructions)
    copies = max(1, round(found / len(loads))) if loads else 1
    return _Body(listing.instructions, False, tuple(loads), copies)


def _streamed(loads: Sequence[Load], streams: Mapping[str, Stream]) -> list[Load]:
    """The loads of the largest arguments."""
    sizes = {n: streams[n].nbytes for load in loads for n in load.arguments if n in streams}
    large = {n for n, size in sizes.items() if 2 * size >= max(sizes.values())}
    return [load for load in loads if load.arguments & large]


def hot_loop(listing: Listing, bits: Mapping[int, int]) -> frozenset[int] | None:
    """The loop that loads the most by itself, not in a loop within it; None if none loads."""
    best, most, inner = None, 0, frozenset[int]()
    for loop in listing.loops():
        total = sum(bits.get(i, 0) for i in loop - inner)
        inner |= loop
        if total > most:
            best, most = loop, total
    return best


def _values(code: "MachineCode", loads: Sequence[Load], streams: Mapping[str, Stream]) -> float:
    """Values that a block reads by these loads, each counted once however many lanes read it."""
    total = 0.0
    for load in loads:
        name = min((n for n in load.arguments if n in streams), key=lambda n: streams[n].bits)
        total += load.bits / streams[name].bits / repeats(code.ttgir, name)
    return total * code.lanes * code.warps


def load_bits(opcode: str) -> int:
    """Bits that one lane loads from global memory by a machine instruction, or 0."""
    head, *kinds = opcode.split(".")
    if head in ("LDG", "LDGSTS", "LD"):
        sizes = [int(kind) for kind in kinds if kind in ("64", "128", "256")]
        small = [int(kind[1:]) for kind in kinds if re.fullmatch(r"[US](8|16)", kind)]
        return (sizes or small or [32])[0]
    if found := re.fullmatch(r"(?:global|buffer|flat)_load_(?:lds_)?(\w+)", opcode):
        if found[1] in _AMD_BITS:
            return _AMD_BITS[found[1]]
        size = re.search(r"(?:b|u|i)(8|16|32|64|96|128)\b", found[1])
        return int(size[1]) if size else 8 if "byte" in found[1] else 16
    return 0


def is_barrier(opcode: str) -> bool:
    """Whether all warps of a block wait for each other in an instruction."""
    return opcode.startswith(("BAR.", "s_barrier")) and opcode != "s_barrier_signal"


def _matrix_op(listing: Listing) -> str:
    """The family of the matrix instructions, of which a kernel has one."""
    for made in listing.instructions:
        if found := _MATRIX.match(made.opcode):
            return found[0].removeprefix("v_").rstrip("_").upper()
    return ""


def warps_per_sm(code: "MachineCode") -> int:
    """Warps of a multiprocessor (AMD: compute unit) that fit beside each other.

    Source: CUDA Occupancy Calculator; AMD's ISA guides.
    """
    arch, amd = code.arch, code.arch.name.startswith("gfx")
    parts, step = _PARTITIONS.get(arch.name, (4, 8))
    registers = -(-max(code.registers, 1) // step) * step
    by_registers = arch.registers // parts // (registers * code.lanes) * parts
    reserved = 0 if amd else _RESERVED
    blocks = min(
        min(by_registers, arch.warps) // code.warps,
        _BLOCKS.get(arch.name, 32),
        (arch.shared + reserved) // (code.shared_bytes + reserved or 1),
    )
    return blocks * code.warps

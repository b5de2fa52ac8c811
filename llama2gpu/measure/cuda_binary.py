"""What a compiled CUDA C kernel is made of, from its machine code alone."""

import re
from collections.abc import Sequence
from dataclasses import replace

from llama2gpu.kernels.machine_code import MachineCode
from llama2gpu.measure.binary import Binary, hot_loop, is_barrier, load_bits, warps_per_sm
from llama2gpu.measure.listing import Instruction, Listing, parse_sass


def read_cuda_binary(code: MachineCode, value_bits: int, streams: bool) -> Binary:
    """Takes a kernel apart, each of whose lanes loads other parts of what it streams.

    value_bits: of a weight, or of a number of the cache. streams: whether it reads all of a matrix
    or cache; those loads are the ones that evict first, or else the widest of the hot loop.
    """
    listing = _together(parse_sass(code.assembly))
    loop = hot_loop(listing, {i: load_bits(x.opcode) for i, x in enumerate(listing.instructions)})
    body = listing.instructions if loop is None else [listing.instructions[i] for i in sorted(loop)]
    opcodes = [made.opcode for made in body if made.opcode != "NOP"]
    loads = _streamed(body) if streams else []
    values = sum(loads) / value_bits * code.lanes * code.warps
    return Binary(
        registers=code.registers,
        spill_bytes=code.spill_bytes,
        shared_bytes=code.shared_bytes,
        shared_limit=code.arch.shared,
        warps_per_sm=warps_per_sm(code),
        load_bits=min(loads, default=0),
        barriers_in_loop=sum(map(is_barrier, opcodes)) if loop is not None else 0,
        matrix_op="",
        has_loop=loop is not None,
        loop_instructions=len(opcodes),
        values=values,
        instr_per_weight=len(opcodes) * code.lanes * code.warps / values if values else None,
    )


def _together(listing: Listing) -> Listing:
    """The same for warps whose lanes have not parted: they never take what a shuffle does then."""
    instructions = (
        replace(made, targets=(), falls=True) if made.opcode.startswith("BRA.DIV") else made
        for made in listing.instructions
    )
    return Listing(tuple(instructions), listing.labels)


def _streamed(body: Sequence[Instruction]) -> list[int]:
    """Bits of each load of what is streamed."""
    first = [load_bits(x.opcode) for x in body if re.match(r"LDG\..*\bEF\b", x.opcode)]
    every = [bits for x in body if (bits := load_bits(x.opcode))]
    return first or [bits for bits in every if bits == max(every)]

"""Kernels that are launched before their predecessors have ended wait for them; needs no GPU.

A kernel that waits too late gives a wrong answer once in thousands of steps: so the machine code is
read. What may run before the wait is every instruction that a branch leads to without passing it.
"""

from collections.abc import Callable
from functools import cache

import pytest
import torch

from llama2gpu.backends.base import Batch
from llama2gpu.backends.triton import TritonBackend
from llama2gpu.kernels.arch import ARCHS
from llama2gpu.kernels.launch import INTERPRETED, Launch, recording
from llama2gpu.kernels.machine_code import machine_code
from llama2gpu.measure.binary import load_bits
from llama2gpu.measure.kernel_work import OPS, WEIGHTS, meta_arguments, works
from llama2gpu.measure.kernels import record
from llama2gpu.measure.listing import Instruction, Listing, parse_llir, parse_sass
from llama2gpu.measure.shapes import SHAPES
from llama2gpu.measure.streams import find_loads

SHAPE = SHAPES["llama-1.1b"]
#: Of the kernels of a decode step.
STEP = ("embed", "qkv", "attention", "project_add", "gate_up", "draw", "logits", "sample")
#: What no kernel writes, and so any may read before the wait.
WEIGHT_POINTERS = {"p_w", "p_scales", "p_zeros", "p_norm"}
#: How instructions begin that write to global memory.
WRITES = ("STG", "ST.", "ATOM", "RED.", "REDG", "UBLKCP", "UTMASTG")

compiled = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET is set: nothing is compiled")


def advanced(arch: str) -> list[Launch]:
    """What readies the next step, with counts of tokens to keep."""
    backend = TritonBackend(torch.device("meta"), arch=ARCHS[arch])
    (embed,) = works(SHAPE, ["embed"], ["dense"], [16], 512)
    (attention,) = works(SHAPE, ["attention"], ["dense"], [16], 512)
    penalized = [w for w in works(SHAPE, ["sample"], ["dense"], [16], 512) if "penal" in w.case]
    tokens = meta_arguments(embed, backend)["tokens"]
    batch: Batch = meta_arguments(attention, backend)["batch"]
    params = meta_arguments(penalized[0], backend)["params"]
    with recording() as launches:
        backend.advance(tokens, tokens, batch, params, 64)
    return launches


def launched(arch: str, ops: tuple[str, ...], tokens: tuple[int, ...]) -> list[Launch]:
    found = [
        x for work in works(SHAPE, ops, WEIGHTS, tokens, 512) for x in record(work, ARCHS[arch])
    ]
    return found + advanced(arch)


@cache
def kinds() -> dict[str, Launch]:
    """Launches on sm_90 that differ in their code, by a name for each."""
    found: dict[str, Launch] = {}
    for launch in launched("sm_90", OPS, (1, 16, 128)):
        constants = launch.plan.constants
        parts = [constants[name] for name in ("BITS", "BLOCK_M", "HAS_NORM") if name in constants]
        parts += [
            name for name in ("p_floor", "p_k_scale") if launch.arguments.get(name) is not None
        ]
        found.setdefault("-".join(map(str, (launch.name.strip("_"), *parts))), launch)
    return found


@compiled
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "gfx942"])
def test_all_kernels_of_a_step_overlap(arch: str) -> None:
    """Each breaks the chain that does not."""
    launches = launched(arch, STEP, (1, 16))
    assert {x.name for x in launches} >= {"_advance_kernel", "_head_kernel", "_embed_kernel"}
    for launch in launches:
        assert launch.plan.pdl is (arch == "sm_90"), launch
        assert launch.plan.constants["PDL"] is launch.plan.pdl, launch


def before(listing: Listing, waits: Callable[[Instruction], bool]) -> set[int]:
    """Indices of the instructions that may run before one that waits."""
    seen: set[int] = set()
    waiting = [0]
    while waiting:
        i = waiting.pop()
        made = listing.instructions[i]
        if i in seen or waits(made):
            continue
        seen.add(i)
        assert not made.opcode.startswith(("BRX", "JMX")), "a jump to nobody knows where"
        waiting += [listing.labels[target] for target in made.targets]
        waiting += [i + 1] * made.falls
    return seen


@compiled
@pytest.mark.parametrize("kind", kinds() if not INTERPRETED else [])
def test_nothing_is_touched_before_the_wait(kind: str) -> None:
    """But weights; and no way leads past the wait, not even to the end."""
    launch = kinds()[kind]
    assert launch.plan.pdl
    code = machine_code(launch, ARCHS["sm_90"])
    listing, form = parse_sass(code.assembly), parse_llir(code.llir)
    early = before(listing, lambda made: made.opcode.startswith("ACQBULK"))
    opcodes = [listing.instructions[i].opcode for i in early]
    assert not [name for name in opcodes if name.startswith((*WRITES, "EXIT", "RET"))]
    assert any(made.opcode.startswith("PREEXIT") for made in listing.instructions)

    source = before(form, lambda made: "griddepcontrol" in made.text and "wait" in made.text)
    loads = [load for load in find_loads(code.llir, form, code.parameters) if load.at in source]
    for load in loads:
        assert load.arguments, load
        assert load.arguments <= WEIGHT_POINTERS, load
    # nor did the assembler move others there
    assert sum(map(load_bits, opcodes)) <= sum(load.bits for load in loads)


def test_a_way_past_the_wait_is_seen() -> None:
    text = """
_k:
        /*0000*/                   ISETP.NE.AND P0, PT, R0, RZ, PT ;
        /*0010*/              @!P0 BRA `(.L_x_1) ;
        /*0020*/                   ACQBULK ;
        /*0030*/                   EXIT ;
.L_x_1:
        /*0040*/                   STG.E desc[UR4][R2.64], R5 ;
        /*0050*/                   EXIT ;
"""
    listing = parse_sass(text)
    early = before(listing, lambda made: made.opcode == "ACQBULK")
    assert [listing.instructions[i].opcode for i in sorted(early)] == [
        "ISETP.NE.AND",
        "BRA",
        "STG.E",
        "EXIT",
    ]

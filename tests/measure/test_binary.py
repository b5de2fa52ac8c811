"""Compiled toy kernels, whose make is known, taken apart; and listings written by hand."""

from dataclasses import replace

import pytest
import torch

from llama2gpu.kernels.arch import ARCHS, EVERY_ARCH
from llama2gpu.kernels.launch import INTERPRETED, Launch
from llama2gpu.kernels.machine_code import MachineCode, machine_code
from llama2gpu.measure.binary import (
    Binary,
    Stream,
    is_barrier,
    load_bits,
    read_binary,
    warps_per_sm,
)
from llama2gpu.measure.cards import CARDS, bandwidth_bound
from llama2gpu.measure.listing import parse_amdgcn, parse_llir, parse_sass
from llama2gpu.measure.streams import find_loads, repeats
from tests.measure.toy_kernels import dot, gemv, one_tile

compiled = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET is set: nothing is compiled")
every_arch = pytest.mark.parametrize("arch", ["sm_80", "sm_90", "gfx942", "gfx1100"])


def compile_for(launch: Launch, arch: str) -> MachineCode:
    return machine_code(launch, ARCHS[arch])


def read(launch: Launch, arch: str, share: float | None = None) -> Binary:
    tensors = {n: x for n, x in launch.arguments.items() if isinstance(x, torch.Tensor)}
    streams = {name: Stream(x.nbytes, 16) for name, x in tensors.items()}
    return read_binary(compile_for(launch, arch), streams, share)


def per_weight(found: Binary) -> float:
    assert found.instr_per_weight is not None
    return found.instr_per_weight


@compiled
@every_arch
def test_loop_that_only_streams(arch: str) -> None:
    found = read(gemv(), arch)
    lanes = ARCHS[arch].target.warp_size
    assert (found.has_loop, found.load_bits, found.barriers_in_loop) == (True, 128, 0)
    assert (found.spill_bytes, found.matrix_op) == (0, "")
    assert found.values % (4 * 512) == 0  # the compiler may unroll
    assert found.instr_per_weight == found.loop_instructions * lanes / found.values
    assert 1 < per_weight(found) < 6
    assert found.shared_limit == ARCHS[arch].shared


@compiled
@every_arch
def test_barrier_in_the_loop(arch: str) -> None:
    found = read(gemv(bk=2048, warps=4, in_loop=True), arch)
    assert found.has_loop
    assert found.barriers_in_loop >= 1
    assert read(one_tile(), arch).barriers_in_loop == 0  # it has some, but no loop


@compiled
@every_arch
def test_narrow_loads_of_the_matrix_show(arch: str) -> None:
    """The vector's are as wide as before: a row's length that is odd narrows the matrix's alone."""
    assert read(gemv(k=4097), arch).load_bits == 16


@compiled
@every_arch
def test_spill(arch: str) -> None:
    assert read(gemv(bn=16, bk=1024), arch).spill_bytes > 0


@compiled
@every_arch
def test_kernel_without_a_loop(arch: str) -> None:
    found, lanes = read(one_tile(), arch), ARCHS[arch].target.warp_size
    assert (found.has_loop, found.load_bits, found.values) == (False, 128, 8 * 4096)
    assert found.instr_per_weight == found.loop_instructions * lanes * 4 / (8 * 4096)
    half = read(one_tile(), arch, share=8 * 2048)  # half of the tile is past the row's end
    assert per_weight(half) == 2 * per_weight(found)


@compiled
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_what_many_lanes_load_counts_once(arch: str) -> None:
    few, many = gemv(bn=1, bk=32, warps=4), gemv(bn=1, bk=32)
    code = compile_for(few, arch)
    assert (repeats(code.ttgir, "p_w"), repeats(code.ttgir, "p_out")) == (4, 1)
    found, alone = read(few, arch), read(many, arch)
    rounds = found.values / alone.values
    assert found.values % 32 == 0
    assert found.loop_instructions == pytest.approx(rounds * alone.loop_instructions, rel=0.2)
    assert per_weight(found) == pytest.approx(4 * per_weight(alone), rel=0.2)


@compiled
@pytest.mark.parametrize(
    ("arch", "rows", "op"),
    [
        ("sm_80", 64, "HMMA"),
        ("sm_90", 16, "HMMA"),
        ("sm_90", 64, "HGMMA"),
        ("sm_100", 128, "UTCHMMA"),
        ("gfx942", 64, "MFMA"),
        ("gfx1100", 64, "WMMA"),
    ],
)
def test_matrix_instructions(arch: str, rows: int, op: str) -> None:
    assert read(dot(bm=rows, bn=128), arch).matrix_op == op


@compiled
def test_rounds_that_the_compiler_unrolls_are_seen() -> None:
    launch = dot()
    found = read(launch, "sm_80")
    listing = parse_sass(compile_for(launch, "sm_80").assembly)
    loop = max(listing.loops(), key=len)
    products = sum(listing.instructions[i].opcode.startswith("HMMA") for i in loop)
    rounds = products / (16 * 64 * 64 / (16 * 8 * 16) / 4)  # of one warp in one round
    assert rounds > 1
    assert found.values == rounds * 64 * 64


@compiled
@every_arch
def test_loads_are_traced_to_arguments(arch: str) -> None:
    code = compile_for(gemv(), arch)
    loads = find_loads(code.llir, parse_llir(code.llir), code.parameters)
    assert {name for load in loads for name in load.arguments} == {"p_x", "p_w"}
    assert all(len(load.arguments) == 1 for load in loads)


@compiled
@pytest.mark.parametrize(
    ("arch", "registers", "warps", "shared", "fits"),
    [
        ("sm_80", 96, 4, 0, 20),
        ("sm_80", 255, 8, 0, 8),
        ("sm_80", 16, 1, 0, 32),  # no more than 32 blocks
        ("sm_86", 16, 1, 0, 16),
        ("sm_90", 32, 4, 0, 64),
        ("sm_90", 32, 4, 56 << 10, 16),
        ("sm_90", 32, 8, 227 << 10, 8),
        ("gfx942", 128, 4, 0, 16),
        ("gfx1100", 96, 4, 40 << 10, 4),
    ],
)
def test_warps_per_sm(arch: str, registers: int, warps: int, shared: int, fits: int) -> None:
    code = compile_for(gemv(), arch)
    code = replace(code, registers=registers, warps=warps, shared_bytes=shared)
    assert warps_per_sm(code) == fits


SASS = """
        .global         _toy_kernel
_toy_kernel:
.text._toy_kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/               @P0 BRA `(.L_x_3) ;
.L_x_1:
        /*0020*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0030*/              @!P1 BRA `(.L_x_4) ;
.L_x_2:
        /*0040*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0050*/                   BRA.U !UP0, `(.L_x_1) ;
.L_x_3:
        /*0060*/              @!P0 EXIT ;
        /*0070*/                   STG.E [R2.64], R4 ;
        /*0080*/                   EXIT ;
.L_x_4:
        /*0090*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR5+0x6000], R4 ;
        /*00a0*/              @!P0 BRA `(.L_x_4) ;
        /*00b0*/                   BRA `(.L_x_2) ;
.L_x_5:
        /*00c0*/                   BRA `(.L_x_5);
        /*00d0*/                   NOP ;
"""


def test_code_out_of_line_belongs_to_its_loop() -> None:
    listing = parse_sass(SASS)
    assert len(listing.instructions) == 12  # without the padding
    inner, outer = listing.loops()
    assert inner == {9, 10}
    assert outer == {2, 3, 4, 5, 9, 10, 11}


def test_subroutine_is_left_off() -> None:
    text = SASS + "$__internal_0$__cuda_sm20_div:\n        /*00e0*/  RET.REL.NODEC R2 `(x) ;\n"
    assert parse_sass(text) == parse_sass(SASS)


def test_loop_of_amd() -> None:
    text = """
toy:
	s_load_dwordx2 s[2:3], s[0:1], 0x0
	s_cbranch_scc1 .LBB0_2
.LBB0_1:                                ; =>This Inner Loop Header: Depth=1
	.loc	1 11 15
	global_load_dwordx4 v[38:41], v[50:51], off
	s_barrier
	s_cbranch_scc0 .LBB0_1
.LBB0_2:
	s_endpgm
.Lfunc_end0:
	v_nop
"""
    listing = parse_amdgcn(text)
    assert listing.loops() == [frozenset({2, 3, 4})]
    assert len(listing.instructions) == 6


@pytest.mark.parametrize(
    ("opcode", "bits"),
    [
        ("LDG.E", 32),
        ("LDG.E.128.CONSTANT", 128),
        ("LDG.E.U16", 16),
        ("LDG.E.S8", 8),
        ("LDG.E.ENL2.256", 256),
        ("LDGSTS.E.BYPASS.128", 128),
        ("LDS.128", 0),
        ("STG.E.128", 0),
        ("global_load_dwordx4", 128),
        ("global_load_b64", 64),
        ("global_load_d16_hi_b16", 16),
        ("global_load_ubyte", 8),
        ("buffer_load_ushort", 16),
        ("ds_load_b128", 0),
        ("s_load_dwordx4", 0),
    ],
)
def test_width_of_a_load(opcode: str, bits: int) -> None:
    assert load_bits(opcode) == bits


def test_barriers_and_what_is_none() -> None:
    names = ("BAR.SYNC.DEFER_BLOCKING", "s_barrier", "DEPBAR.LE", "WARPSYNC", "UTCBAR", "s_branch")
    assert [is_barrier(name) for name in names] == [True, True, False, False, False, False]


def test_budget_of_cards() -> None:
    """Lane instructions for each int4 weight, without scales."""
    figures = {"H200": 3.9, "H100": 5.6, "A100": 5.6, "RTX 3090": 10, "RTX 4090": 22, "B200": 2.5}
    cards = {card.name: card for card in CARDS}
    for name, figure in figures.items():
        assert cards[name].budget(0.5) == pytest.approx(figure, rel=0.07)
    assert cards["H200"].budget(0.5) == pytest.approx(3.9, rel=0.01)


def test_bound_of_bandwidth() -> None:
    found = bandwidth_bound("sm_90", 6.25, 0.5)
    assert set(found) == {"H200", "H100"}
    assert found["H200"] == pytest.approx(0.62, abs=0.01)
    assert bandwidth_bound("sm_90", 2.9, 0.5)["H200"] == 1
    assert {card.arch for card in CARDS} == set(EVERY_ARCH)

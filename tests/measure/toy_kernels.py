"""Small kernels whose make is known, and a backend that launches one of them."""

# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-any-return"
from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl

from llama2gpu.kernels.arch import Arch
from llama2gpu.kernels.launch import Launch, Plan, launch
from llama2gpu.quant import Dense


@triton.jit
def gemv_kernel(p_x, p_w, p_out, K, IN_LOOP: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """Rows times a vector, summed in each lane, or by all of them in every round."""
    o_n = tl.program_id(0) * BN + tl.arange(0, BN)
    o_k = tl.arange(0, BK)
    lanes = tl.zeros([BN, BK], tl.float32)
    total = tl.zeros([BN], tl.float32)
    for k in range(0, K, BK):
        b_x = tl.load(p_x + k + o_k).to(tl.float32)
        b_w = tl.load(p_w + o_n[:, None].to(tl.int64) * K + (k + o_k)[None, :]).to(tl.float32)
        if IN_LOOP:
            total += tl.sum(b_w * b_x[None, :], axis=1)
        else:
            lanes += b_w * b_x[None, :]
    tl.store(p_out + o_n, (total + tl.sum(lanes, axis=1)).to(tl.bfloat16))


@triton.jit
def one_tile_kernel(p_x, p_w, p_out, BN: tl.constexpr, BK: tl.constexpr):
    """The same where one tile has all columns."""
    o_n = tl.program_id(0) * BN + tl.arange(0, BN)
    o_k = tl.arange(0, BK)
    b_x = tl.load(p_x + o_k).to(tl.float32)
    b_w = tl.load(p_w + o_n[:, None] * BK + o_k[None, :]).to(tl.float32)
    tl.store(p_out + o_n, tl.sum(b_w * b_x[None, :], axis=1).to(tl.bfloat16))


@triton.jit
def dot_kernel(
    p_x, p_w, p_out, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):  # fmt: skip
    """BM tokens times rows."""
    o_m, o_k = tl.arange(0, BM), tl.arange(0, BK)
    o_n = tl.program_id(0) * BN + tl.arange(0, BN)
    total = tl.zeros([BM, BN], tl.float32)
    for k in range(0, K, BK):
        b_x = tl.load(p_x + o_m[:, None] * K + (k + o_k)[None, :])
        b_w = tl.load(p_w + o_n[None, :] * K + (k + o_k)[:, None])
        total = tl.dot(b_x, b_w, total)
    tl.store(p_out + o_m[:, None] * N + o_n[None, :], total.to(tl.bfloat16))


def empty(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


def gemv(
    bn: int = 4, bk: int = 512, warps: int = 1, k: int = 4096, in_loop: bool = False
) -> Launch:
    plan = Plan((4096 // bn,), {"IN_LOOP": in_loop, "BN": bn, "BK": bk}, num_warps=warps)
    arguments = {"p_x": empty(k), "p_w": empty(4096, k), "p_out": empty(4096), "K": k}
    return Launch(gemv_kernel, plan, arguments)


def one_tile(bk: int = 4096, warps: int = 4) -> Launch:
    plan = Plan((512,), {"BN": 8, "BK": bk}, num_warps=warps)
    arguments = {"p_x": empty(bk), "p_w": empty(4096, bk), "p_out": empty(4096)}
    return Launch(one_tile_kernel, plan, arguments)


def dot(bm: int = 16, bn: int = 64, bk: int = 64) -> Launch:
    plan = Plan((4096 // bn,), {"BM": bm, "BN": bn, "BK": bk}, num_warps=4)
    arguments = {"p_x": empty(bm, 4096), "p_w": empty(4096, 4096), "p_out": empty(bm, 4096)}
    return Launch(dot_kernel, plan, {**arguments, "N": 4096, "K": 4096})


class ToyBackend:
    """Has dense matrices only, on which `linear` launches the GEMV, and `rms_norm` nothing."""

    def __init__(self, device: torch.device, arch: Arch) -> None:
        self.arch = arch

    def prepare(self, weight: Dense, op: str) -> torch.Tensor:
        return weight.data

    def linear(self, x: torch.Tensor, weight: torch.Tensor) -> None:
        rows, columns = weight.shape
        plan = replace(gemv().plan, grid=(rows // 4,))
        launch(gemv_kernel, plan, p_x=x, p_w=weight, p_out=x.new_empty(rows), K=columns)

    def rms_norm(self, x: torch.Tensor, norm: Any) -> None:
        """As one that another backend serves."""

"""One row on a CPU at the speed of its memory, from PyTorch's own kernels.

What PyTorch picks by itself for one row leaves bandwidth unused: oneDNN's bfloat16 path reads
about half as fast as the plain dot-product kernel behind it, and MKL's float32 gemv runs on one
thread. `bench/NOTES.md` has the figures.
"""

import math
import threading

import torch
import torch.nn.functional as F
from torch import Tensor

#: Below this many weights a second thread costs more than it reads.
SPLIT_ABOVE = 1 << 18

_lock = threading.Lock()
_holders = 0
_enabled = True


def cpu_linear(x: Tensor, weight: Tensor) -> Tensor:
    """X · Wᵀ for CPU tensors: [T, K] and [N, K] → [T, N]."""
    if x.shape[0] != 1:
        return F.linear(x, weight)
    if x.dtype == torch.float32:
        return _threaded_row(x, weight)
    if x.dtype != torch.bfloat16:
        return F.linear(x, weight)
    _keep_onednn_out()
    try:
        return F.linear(x, weight)
    finally:
        _let_onednn_in()


def cpu_rms_norm_row(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`Backend.rms_norm` of [1, dim] with half the calls; on a CPU the sum needs no waiting."""
    wide = x.float()
    square = float(torch.dot(wide[0], wide[0]))
    return (wide * weight * (1.0 / math.sqrt(square / x.shape[1] + eps))).to(x.dtype)


def _threaded_row(x: Tensor, weight: Tensor) -> Tensor:
    """One float32 row, the weight's rows cut in equal parts for the threads."""
    rows, columns = weight.shape
    parts = torch.get_num_threads()
    if parts == 1 or rows % parts or weight.numel() < SPLIT_ABOVE:
        return F.linear(x, weight)
    blocks = weight.view(parts, rows // parts, columns).transpose(1, 2)
    return torch.bmm(x.expand(parts, 1, columns), blocks).view(1, rows)


def _keep_onednn_out() -> None:
    """Turns oneDNN off while any thread needs that; PyTorch's switch is one for the process."""
    global _holders, _enabled
    with _lock:
        if _holders == 0:
            _enabled = torch._C._get_mkldnn_enabled()
            torch._C._set_mkldnn_enabled(False)
        _holders += 1


def _let_onednn_in() -> None:
    global _holders
    with _lock:
        _holders -= 1
        if _holders == 0:
            torch._C._set_mkldnn_enabled(_enabled)

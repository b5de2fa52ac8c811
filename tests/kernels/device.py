"""Where Triton kernels are tested: a GPU, or the CPU in Triton's interpreter, or nowhere."""

import pytest
import torch

from llama2gpu.kernels.launch import INTERPRETED


def _device() -> torch.device | None:
    if INTERPRETED:
        return torch.device("cpu")
    return torch.device("cuda", 0) if torch.cuda.is_available() else None


DEVICE = _device()
#: For what is made while tests are collected, though they will be skipped.
PLACE = DEVICE or torch.device("cpu")
#: The interpreter truncates to bfloat16, where GPUs round.
DTYPES = (torch.float32, torch.float16, *([] if INTERPRETED else [torch.bfloat16]))

needs_device = pytest.mark.skipif(DEVICE is None, reason="no GPU, and TRITON_INTERPRET is not set")

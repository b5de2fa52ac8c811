"""Where Triton kernels are tested: a GPU, or the CPU in Triton's interpreter, or nowhere."""

import torch

from llama2gpu.kernels.launch import INTERPRETED


def _device() -> torch.device | None:
    if INTERPRETED:
        return torch.device("cpu")
    return torch.device("cuda", 0) if torch.cuda.is_available() else None


DEVICE = _device()
#: The interpreter truncates to bfloat16, where GPUs round.
DTYPES = (torch.float32, torch.float16, *([] if INTERPRETED else [torch.bfloat16]))

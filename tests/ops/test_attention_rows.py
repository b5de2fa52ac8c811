"""Attention of one query a sequence in C: blocks of heads and tokens, and what is left over."""

import pytest
import torch

from llama2gpu.backends.inputs import Inputs
from llama2gpu.ops.cases import Case
from tests.ops.test_ops import DTYPES, CompiledBackend, agree

CPU = torch.device("cpu")
#: Tokens cached before the new one: around blocks of 4 and of 16, around pages of 16, and several.
CACHED = (0, 1, 2, 3, 4, 7, 14, 15, 16, 17, 19, 31, 46, 62, 100)


def case_of(group: int, size: int, page: int) -> Case:
    """A sequence of each length."""
    return Case(
        "lengths", cached=CACHED, new=(1,) * len(CACHED), dim=16, heads=2 * group, kv_heads=2,
        head_dim=size, hidden=16, vocab=16, page=page,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("kv_dtype", [None, torch.int8], ids=["plain", "int8"])
@pytest.mark.parametrize("size", [8, 16, 72, 128])
@pytest.mark.parametrize("group", [1, 3, 4, 9])
def test_lengths(group: int, size: int, kv_dtype: torch.dtype | None, dtype: torch.dtype) -> None:
    for page in (5, 16):
        inputs = Inputs(case_of(group, size, page), dtype, seed=group * size, kv_dtype=kv_dtype)
        agree("attention", CompiledBackend(CPU), inputs)

"""Random checkpoints: the same by seed and name, and of the promised spread."""

import pytest
import torch

from llama2gpu.checkpoints import RandomCheckpoint, tensor_shapes
from llama2gpu.errors import CheckpointError
from tests.checkpoints.writers import CONFIG


def test_same_by_seed_and_name() -> None:
    first, second = (RandomCheckpoint(CONFIG, torch.float32, seed=3) for _ in range(2))
    second.read("output")
    assert torch.equal(first.read("layers.0.wq"), second.read("layers.0.wq"))
    assert not torch.equal(first.read("layers.0.wq"), first.read("layers.1.wq"))
    other = RandomCheckpoint(CONFIG, torch.float32, seed=4)
    assert not torch.equal(first.read("layers.0.wq"), other.read("layers.0.wq"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_shapes_and_spread(dtype: torch.dtype) -> None:
    checkpoint = RandomCheckpoint(CONFIG, dtype)
    assert [(t.name, t.shape) for t in checkpoint.tensors()] == list(tensor_shapes(CONFIG))
    assert checkpoint.read("embed").dtype == dtype
    assert 0.018 < float(checkpoint.read("embed").float().std()) < 0.022
    assert 0.9 < float(checkpoint.read("norm").float().mean()) < 1.1
    with pytest.raises(CheckpointError, match="nonsense"):
        checkpoint.read("nonsense")

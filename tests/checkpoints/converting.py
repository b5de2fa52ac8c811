"""Models to convert, and how tests do it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from llama2gpu.checkpoints import Checkpoint, open_checkpoint, tensor_shapes
from llama2gpu.checkpoints.convert import Target, convert
from llama2gpu.checkpoints.tally import Tally
from llama2gpu.config import Config
from llama2gpu.tokenizer import Tokenizer

CONFIG = Config(
    dim=64, hidden=96, layers=2, heads=4, kv_heads=2, head_dim=16, vocab=320, context=48
)
TIED = replace(CONFIG, tied=True)
#: Sizes that 32 and 64 do not divide, and 8 does.
ODD = Config(dim=40, hidden=88, layers=1, heads=5, kv_heads=5, head_dim=8, vocab=320, context=32)


def written(
    source: Checkpoint, path: Path, form: str, words: Tokenizer | None = None, **how: Any
) -> tuple[Checkpoint, Tally]:
    tally = convert(source, Target(form, path, **how), words, lambda done, total: None)
    return open_checkpoint(path), tally


def assert_same(found: Checkpoint, source: Checkpoint) -> None:
    for name, _ in tensor_shapes(source.config):
        assert torch.equal(found.read(name).float(), source.read(name).float()), name

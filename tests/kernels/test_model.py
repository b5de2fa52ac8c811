"""Whole models on Triton's kernels: golden text, and the tokens of the reference."""

from pathlib import Path
from typing import Any

import pytest
import torch

import llama2gpu
from llama2gpu.batch import Span, build_batch
from llama2gpu.cache import KVCache
from llama2gpu.kernels.tiling import FEW
from llama2gpu.model import Model
from tests.kernels.device import DEVICE
from tests.model.test_golden import GREEDY

pytestmark = pytest.mark.skipif(DEVICE is None, reason="no GPU, and TRITON_INTERPRET is not set")

#: Each takes seconds in the interpreter.
TOKENS = 5


def opened(backend: str, **asked: Any) -> llama2gpu.Llama:
    device = "cpu" if backend == "numpy" else str(DEVICE)
    return llama2gpu.load("stories", backend=backend, device=device, dtype="fp32", **asked)


@pytest.mark.parametrize("quant", ["none", "int8", "int4"])
def test_the_shipped_model(quant: str) -> None:
    prompt = "Once upon a time, there was"
    found, wanted = (
        opened(name, quant=quant).generate(prompt, temperature=0, max_tokens=TOKENS).tokens
        for name in ("triton", "numpy")
    )
    assert found == wanted
    assert len(found) == TOKENS


def test_golden_text(stories: Path) -> None:
    """Its beginning token by token, then every token of it as what follows those before."""
    files: dict[str, Any] = {"tokenizer": stories / "tok512.bin", "dtype": "fp32"}
    path = stories / "stories260K.bin"
    golden = llama2gpu.load(path, backend="torch", device="cpu", **files)
    answer = golden.generate("", temperature=0, max_tokens=256)
    assert answer.text == GREEDY
    tested = llama2gpu.load(path, backend="triton", device=str(DEVICE), **files)
    found = tested.generate("", temperature=0, max_tokens=2 * TOKENS)
    assert found.tokens == answer.tokens[: 2 * TOKENS]
    taken = [*tested.tokenizer.encode(""), *answer.tokens]
    assert likeliest_after(tested.engine.model, taken[:-1]) == answer.tokens


@torch.inference_mode()
def likeliest_after(model: Model, tokens: list[int]) -> list[int]:
    """What the model would draw after each token, taken in pieces as long as matrix kernels go."""
    device = model.backend.device
    cache = KVCache(model.config, 8, torch.float32, device)
    pages, found = cache.take(8), []
    for start in range(0, len(tokens), FEW):
        piece = torch.tensor(tokens[start : start + FEW], device=device)
        batch = build_batch([Span(pages, start, len(piece))], cache.page, device)
        logits = model.logits(model.forward(piece, batch, cache.layers))
        found += logits.argmax(dim=1).tolist()
    return found

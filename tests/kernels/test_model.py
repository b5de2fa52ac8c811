"""Whole models on Triton's kernels: golden text, and the tokens of the reference."""

from pathlib import Path
from typing import Any

import pytest

import llama2gpu
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
    model = llama2gpu.load(
        stories / "stories260K.bin",
        tokenizer=stories / "tok512.bin",
        backend="triton",
        device=str(DEVICE),
    )
    answer = model.generate("", temperature=0, max_tokens=3 * TOKENS)
    assert len(answer.tokens) == 3 * TOKENS
    assert GREEDY.startswith(answer.text)

"""Whole models on the CUDA C kernels: golden text by the command line, tokens of the reference."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import llama2gpu
from llama2gpu.backends.base import Probe
from llama2gpu.backends.cupy import CupyBackend
from llama2gpu.cli.main import program
from tests.cuda.emulator import Emulator
from tests.model.test_golden import GREEDY

TOKENS = 6


@pytest.fixture(autouse=True)
def _on_the_cpu(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend finds a CPU that runs its kernels, where it would look for CuPy and a GPU."""

    def runner(device: torch.device) -> Emulator:
        assert device.type == "cpu"
        return emulator

    stand_in: Any = ModuleType("cuda_run")
    stand_in.CupyRunner = runner
    monkeypatch.setitem(sys.modules, "llama2gpu.kernels.cuda_run", stand_in)
    monkeypatch.setattr(CupyBackend, "probe", classmethod(lambda cls, device: Probe(True, "here")))


def test_golden_text(stories: Path) -> None:
    result = CliRunner().invoke(
        program,
        [
            "run", "--model", str(stories / "stories260K.bin"),
            "--tokenizer", str(stories / "tok512.bin"),
            "--backend", "cupy", "--device", "cpu", "-t", "0", "-n", "256",
        ],
    )  # fmt: skip
    assert (result.exit_code, result.exception) == (0, None), result.stderr
    assert "backend cupy" in result.stderr
    assert result.stdout.strip() == GREEDY


def opened(backend: str, **asked: Any) -> llama2gpu.Llama:
    return llama2gpu.load("stories", backend=backend, device="cpu", dtype="fp32", **asked)


@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
@pytest.mark.parametrize("quant", ["none", "int8", "int4"])
def test_the_shipped_model(quant: str, kv_dtype: str) -> None:
    prompt = "Once upon a time, there was"
    found, wanted = (
        opened(name, quant=quant, kv_dtype=kv_dtype).generate_many(
            [prompt, "The dog"], temperature=0, max_tokens=TOKENS
        )
        for name in ("cupy", "numpy")
    )
    assert [answer.tokens for answer in found] == [answer.tokens for answer in wanted]
    assert all(len(answer.tokens) == TOKENS for answer in found)

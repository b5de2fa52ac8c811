"""A small text, and the command with tiny sizes."""

import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from llama2gpu.cli.main import program

TINY = "--dim 32 --layers 2 --heads 4 --kv-heads 2 --hidden 48 --context 32 --batch 4"
TINY += " --vocab 320 --threads 1 --device cpu"
Train = Callable[..., Result]


def command(text: Path, out: Path, more: str = "") -> list[str]:
    """Arguments after `llama2gpu`; later options win over earlier ones."""
    return ["train", str(text), "-o", str(out), *TINY.split(), "--steps", "6", *more.split()]


def shell(arguments: list[str]) -> list[str]:
    """The command in a process of its own."""
    return [sys.executable, "-m", "llama2gpu", *arguments]


def make_text(documents: int = 60, seed: int = 0) -> str:
    draw = random.Random(seed)
    names, things = ("Tom", "Ana", "Bo", "Lily"), ("a red kite", "the old dog", "some soup")
    texts = []
    for _ in range(documents):
        name, other, thing = draw.choice(names), draw.choice(names), draw.choice(things)
        texts.append(
            f"{name} saw {thing}.\n\n“Look!” said {name}. {other} was {draw.random():.3f}."
        )
    return "\n<|endoftext|>\n".join(texts) + "\n"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(make_text(), encoding="utf-8")
    return path


@pytest.fixture
def train(text: Path, tmp_path: Path) -> Train:
    """Trains on `text` to `tmp_path / "out"` unless told otherwise."""

    def run(more: str = "", *, source: Path = text, out: Path = tmp_path / "out") -> Result:
        return CliRunner().invoke(program, command(source, out, more))

    return run

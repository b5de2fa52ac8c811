"""Killed at any moment and resumed, a training ends as if it had never stopped."""

import json
import random
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from llama2gpu.training.metrics import read_metrics
from tests.training.conftest import Train, command, shell
from tests.training.test_bad_input import refused

LONG = "--steps 120 --eval-every 40 --save-every 7"


def losses(folder: Path) -> list[tuple[int, float, float | None, float]]:
    return [(r.step, r.loss, r.held_out, r.lr) for r in read_metrics(folder)]


def interrupt(arguments: list[str], work: Path, after: int, number: int) -> int:
    """Sends a signal once `after` steps are recorded, a random moment later; the exit status."""
    with subprocess.Popen(shell(arguments), stderr=subprocess.DEVNULL) as process:
        while len(read_metrics(work)) < after and process.poll() is None:
            threading.Event().wait(0.005)
        threading.Event().wait(random.uniform(0, 0.05))
        process.send_signal(number)
        return process.wait(60)


@pytest.fixture
def unbroken(train: Train, tmp_path: Path) -> Path:
    assert train(LONG, out=tmp_path / "unbroken").exit_code == 0
    return tmp_path / "unbroken"


def test_killed_and_resumed(train: Train, text: Path, tmp_path: Path, unbroken: Path) -> None:
    out, work = tmp_path / "out", tmp_path / "out.training"
    started = command(text, out, LONG)
    assert interrupt(started, work, random.randint(1, 50), signal.SIGKILL) == -signal.SIGKILL
    assert interrupt([*started, "--resume"], work, 60, signal.SIGKILL) == -signal.SIGKILL
    assert not out.exists()
    result = train(LONG + " --resume", out=out)
    assert result.exit_code == 0, result.output
    assert losses(out) == losses(unbroken)
    for name in ("model.safetensors", "tokenizer.model", "config.json"):
        assert (out / name).read_bytes() == (unbroken / name).read_bytes()


def test_control_c(train: Train, text: Path, tmp_path: Path, unbroken: Path) -> None:
    out, work = tmp_path / "out", tmp_path / "out.training"
    assert interrupt(command(text, out, LONG), work, 10, signal.SIGINT) == 130
    assert (work / "state.pt").is_file()
    steps = len(read_metrics(work))
    assert 10 <= steps < 120
    refused(train(LONG, out=out), "holds an unfinished training", "--resume")
    assert train(LONG + " --resume", out=out).exit_code == 0
    assert losses(out) == losses(unbroken)


def test_resume_needs_the_same_arguments(train: Train, text: Path, tmp_path: Path) -> None:
    out, work = tmp_path / "out", tmp_path / "out.training"
    interrupt(command(text, out, LONG), work, 10, signal.SIGINT)
    state = (work / "state.pt").read_bytes()
    refused(
        train(LONG + " --resume --lr 0.5 --hidden 64", out=out), "lr was 0.002, is 0.5", "hidden"
    )
    text.write_text(text.read_text() + "One more line.\n")
    refused(train(LONG + " --resume", out=out), "text was")
    assert (work / "state.pt").read_bytes() == state


def test_nothing_to_resume(train: Train) -> None:
    refused(train("--resume"), "no unfinished training")
    train()
    refused(train("--resume"), "it is finished")


@pytest.mark.parametrize("data", [b"", b"garbage", b"PK\x03\x04"])
def test_damaged_state(train: Train, text: Path, tmp_path: Path, data: bytes) -> None:
    work = tmp_path / "out.training"
    train()
    (tmp_path / "out").rename(work)
    (work / "state.pt").write_bytes(data)
    refused(train("--resume"), "state.pt is damaged", "--overwrite")
    assert train("--overwrite").exit_code == 0


def test_cut_line_of_metrics(train: Train, text: Path, tmp_path: Path, unbroken: Path) -> None:
    work = tmp_path / "out.training"
    interrupt(command(text, tmp_path / "out", LONG), work, 10, signal.SIGKILL)
    with (work / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 99})[:6])
    assert train(LONG + " --resume").exit_code == 0
    assert losses(tmp_path / "out") == losses(unbroken)

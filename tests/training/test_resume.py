"""Killed at any moment and resumed, a training ends as if it had never stopped."""

import json
import random
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llama2gpu.errors import RequestError
from llama2gpu.training.loop import Record
from llama2gpu.training.metrics import Metrics, read_metrics
from llama2gpu.training.session import Session
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


def killed(*args: Any) -> None:
    raise KeyboardInterrupt


def unfinish(folder: Path) -> None:
    """Makes the record of a finished training that of one that was killed."""
    record = json.loads((folder / "training.json").read_text())
    (folder / "training.json").write_text(json.dumps(record | {"finished": False}))


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
        train(LONG + " --resume --lr 0.5 --hidden 64 --kv-heads 1 --untied", out=out),
        "--lr was 0.002, is 0.5",
        "--hidden was 48, is 64",
        "--kv-heads was 2, is 1",
        "--untied was False, is True",
    )
    text.write_text(text.read_text() + "One more line.\n")
    refused(train(LONG + " --resume", out=out), "the text was")
    assert (work / "state.pt").read_bytes() == state
    (work / "state.pt").unlink()
    refused(train(LONG + " --resume --vocab 400", out=out), "--vocab was 320, is 400")
    (work / "training.json").write_text("[")
    refused(train(LONG + " --resume", out=out), "training.json is damaged", "--overwrite")


def test_no_memory_for_the_state(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train()
    (tmp_path / "out").rename(tmp_path / "out.training")
    unfinish(tmp_path / "out.training")
    (tmp_path / "out.training" / "state.pt").touch()

    def full(*args: Any, **more: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr("torch.load", full)
    refused(train("--resume"), "no memory for", "--resume")


def test_nothing_to_resume(train: Train) -> None:
    refused(train("--resume"), "no unfinished training")
    train()
    refused(train("--resume"), "it is finished")


@pytest.mark.parametrize("data", [b"", b"garbage", b"PK\x03\x04"])
def test_damaged_state(train: Train, text: Path, tmp_path: Path, data: bytes) -> None:
    work = tmp_path / "out.training"
    train()
    (tmp_path / "out").rename(work)
    unfinish(work)
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


@pytest.mark.parametrize(
    "line",
    [
        b'{"step": "1", "loss": 1.0, "held_out": null, "lr": 1.0, "tokens_per_second": 1.0}\n',
        b'{"step": 1, "loss": "", "held_out": null, "lr": 1.0, "tokens_per_second": 1.0}\n',
        b'{"step": 1, "loss": 1.0, "held_out": null, "lr": 1.0, "tokens_per_second": 1.0}',
        b"\xff\n",
        b"[1]\n",
        b"[" * 100_000,
    ],
)
def test_damaged_line_of_metrics(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(line)
    assert read_metrics(tmp_path) == []


def test_all_steps_done_and_no_metrics(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(out=tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(Session, "_export", killed)
        train()
    (tmp_path / "out.training" / "metrics.jsonl").unlink()
    assert train("--resume").exit_code == 0
    out, whole = (
        json.loads((tmp_path / name / "training.json").read_text()) for name in ("out", "whole")
    )
    assert out["held_out_loss"] == whole["held_out_loss"]


def test_killed_before_it_took_its_name(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("llama2gpu.training.files.publish", killed)
        train()
    work = tmp_path / "out.training"
    model = (work / "model.safetensors").read_bytes()
    (work / "state.pt").write_bytes(b"left")
    assert train("--resume").exit_code == 0
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == model
    assert not (tmp_path / "out" / "state.pt").exists()


def test_steps_outlive_a_full_disk(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = "--save-every 100 --eval-every 3"
    train(options, out=tmp_path / "whole")
    add = Metrics.add

    def full(self: Metrics, record: Record) -> None:
        if record.step == 4:
            raise RequestError("can't write: make room")
        add(self, record)

    with monkeypatch.context() as patched:
        patched.setattr(Metrics, "add", full)
        refused(train(options), "make room; then --resume goes on after step 4")
    assert train(options + " --resume").exit_code == 0
    whole = [one for one in losses(tmp_path / "whole") if one[0] != 4]
    assert losses(tmp_path / "out") == whole


def test_control_c_between_two_looks(train: Train, tmp_path: Path) -> None:
    looks = iter([False, True])

    @contextmanager
    def late() -> Iterator[Callable[[], bool]]:
        yield lambda: next(looks)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("llama2gpu.cli.train.interrupted", late)
        assert train("--save-every 100").exit_code == 130
    assert (tmp_path / "out.training" / "state.pt").is_file()

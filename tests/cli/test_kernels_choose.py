"""`llama2gpu kernels choose`: rates that are made up, and once for real."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from llama2gpu.backends import auto_order
from llama2gpu.backends.chosen import NO_CHOSEN, recall
from llama2gpu.cli import bench_options
from llama2gpu.cli.main import program
from llama2gpu.errors import BackendError
from llama2gpu.measure import choose
from llama2gpu.measure.subject import Subject

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(NO_CHOSEN)


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], Any]:
    """Rate, or error, by backend and quantization, instead of a measurement."""
    made: dict[tuple[str, str], Any] = {}

    def measure(subject: Subject, cases: Any, repeats: int) -> list[Any]:
        rate = made[subject.backend, subject.quant]
        if isinstance(rate, Exception):
            raise rate
        day = {"date": "2026-01-02"}
        return [SimpleNamespace(median=lambda field: rate, machine=day)]

    def run(work: Callable[[], Any]) -> Any:
        return work()

    monkeypatch.setattr(choose, "measure", measure)
    monkeypatch.setattr(bench_options, "apart", run)
    return made


def call(*args: str) -> Result:
    return CliRunner().invoke(program, ["kernels", "choose", "--device", "cpu", *args])


def test_the_fastest_is_remembered(rates: dict[Any, Any]) -> None:
    rates |= {("torch", "none"): 50.0, ("numpy", "none"): 5.0}
    rates |= {("torch", "int4"): 3.0, ("numpy", "int4"): 1234.0}
    done = call("--quant", "none", "--quant", "int4")
    assert done.exit_code == 0
    assert "dense  auto takes torch\nint4   auto takes numpy\n" in done.stdout
    assert "1,234" in done.stdout
    assert "without triton: no GPU is at hand" in done.stderr
    assert {kind: found.order for kind, found in recall(CPU).items()} == {
        "dense": ["torch", "numpy"],
        "int4": ["numpy", "torch"],
    }
    told = CliRunner().invoke(program, ["doctor", "--device", "cpu"]).stdout
    assert "as `llama2gpu kernels choose` measured" in told
    assert "measured 2026-01-02, llama-1.1b int4: numpy 1,234 tok/s, torch 3 tok/s" in told


def test_one_that_fails_is_named_and_left_out(rates: dict[Any, Any]) -> None:
    rates |= {("torch", "none"): 50.0, ("numpy", "none"): MemoryError()}
    done = call("--quant", "none", "--json")
    told = json.loads(done.stdout)
    assert told["order"] == {"dense": ["torch"]}
    assert [trial["problem"] for trial in told["trials"]] == ["", "out of memory"]
    assert recall(CPU)["dense"].rates == {"torch": 50.0}


def test_what_another_package_raises_is_named(rates: dict[Any, Any]) -> None:
    rates |= {("torch", "none"): TypeError("it takes 2"), ("numpy", "none"): 5.0}
    done = call("--quant", "none", "--json")
    assert done.exit_code == 0
    problems = {t["backend"]: t["problem"] for t in json.loads(done.stdout)["trials"]}
    assert problems == {"torch": "TypeError('it takes 2')", "numpy": ""}


def test_nothing_is_kept_where_all_fail(rates: dict[Any, Any]) -> None:
    rates |= {("torch", "none"): BackendError("it is broken")}
    done = call("--quant", "none", "--backend", "torch")
    assert (done.exit_code, recall(CPU)) == (1, {})
    assert done.stderr.splitlines()[-1].endswith(
        "no backend could be measured: torch: it is broken"
    )


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--backend", "triton"), 1, "backend 'triton' can't run here"),
        (("--backend", "nope"), 1, "unknown backend 'nope'"),
        (("--backend", ","), 1, "unknown backend ''"),
        (("--shape", "stories260k", "--model", "stories"), 2, "exclude each other"),
        (("--quant", "int5"), 2, "int5"),
        (("--model", "/nowhere", "--backend", "torch"), 1, "no such file"),
    ],
)
def test_mistakes(arguments: tuple[str, ...], status: int, message: str) -> None:
    done = call(*arguments)
    assert done.exit_code == status
    assert message in done.stderr.splitlines()[-1]
    assert recall(CPU) == {}


def test_a_cache_that_cannot_be_written_is_told_before(
    rates: dict[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "file"
    place.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    done = call("--quant", "none")  # a rate that was asked for would be a KeyError
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith(f"llama2gpu: error: {place}")


def test_forget(rates: dict[Any, Any]) -> None:
    rates |= {("torch", "none"): 50.0}
    call("--quant", "none", "--backend", "torch")
    assert call("--forget").stdout == "forgotten\n"
    assert call("--forget").stdout == "nothing was remembered\n"
    assert recall(CPU) == {}


def test_for_real() -> None:
    arguments = ["--shape", "stories260k", "--quant", "int8", "--tokens", "2", "--repeats", "1"]
    done = call(*arguments, "--json")
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert {trial["backend"] for trial in told["trials"]} == {"torch", "numpy"}
    assert all(trial["rate"] > 0 for trial in told["trials"])
    assert auto_order(CPU, "int8")[0] == told["order"]["int8"][0]

"""`llama2gpu kernels tune` and `warmup`: without a GPU, and with one that is made up."""

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from llama2gpu.cli import kernels_tune, kernels_warmup
from llama2gpu.cli.main import program
from llama2gpu.config import Config
from llama2gpu.kernels import warm as warming
from llama2gpu.kernels.launch import INTERPRETED, Launch
from llama2gpu.kernels.tiling import Tile
from llama2gpu.kernels.tuned import read_entries, tuned_path
from llama2gpu.kernels.warm import Warmed
from llama2gpu.measure import cuda_bench, shapes
from tests.measure.fake_bench import FakeBench, tile_of, write

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter has rows of its own")

ROOT = Path(__file__).resolve().parents[2]
SMALL = Config(
    dim=256, hidden=512, layers=1, heads=4, kv_heads=2, head_dim=64, vocab=96, context=1024
)
FAST = Tile(16, 256, 1)


@pytest.fixture
def _gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The CPU stands for a GPU of architecture sm_80."""
    place = torch.device("cpu")
    for module in (kernels_tune, kernels_warmup):
        monkeypatch.setattr(module, "gpu", lambda device, doing: place)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A Card")
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setitem(shapes.SHAPES, "small", SMALL)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("LLAMA2GPU_NO_TUNED", raising=False)


def call(*args: str) -> Result:
    return CliRunner().invoke(program, ["kernels", *args])


def tune(bench: FakeBench, monkeypatch: pytest.MonkeyPatch, *args: str) -> Result:
    monkeypatch.setattr(cuda_bench, "CudaBench", lambda device: bench)
    return call("tune", "--shape", "small", "--weight", "dense", "--tokens", "1", *args)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["tune", "warmup"])
def test_without_a_gpu(name: str) -> None:
    code = "from llama2gpu.cli.main import main; main()"
    arguments = [sys.executable, "-c", code, "kernels", name]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert line.startswith("llama2gpu: error: kernels can't be ")
    assert "needs a GPU, so run it on the machine that has it" in line


@pytest.mark.usefixtures("_gpu")
def test_table_and_file(monkeypatch: pytest.MonkeyPatch) -> None:
    result = tune(FakeBench(times={FAST: [75.04]}), monkeypatch)
    lines = result.stdout.splitlines()
    told = result.stderr.splitlines()
    assert (result.exit_code, len(told)) == (0, 5)
    assert told[3] == "4/5  tuning gate_up dense 1024×256, 1 tokens"
    assert max(map(len, lines[:-1])) <= 100
    (row,) = [line.split() for line in lines if line.split()[:1] == ["gate_up"]]
    assert row[:8] == ["gate_up", "gate_up", "dense", "1", "1024×256", "100.0", "75.0", "25.0%"]
    path = tuned_path("A Card")
    assert lines[-1] == f"5 of 5 are faster than shipped: {path}"
    assert {entry.tile for entry in read_entries(path, "sm_80")} == {FAST}


@pytest.mark.usefixtures("_gpu")
def test_json(monkeypatch: pytest.MonkeyPatch) -> None:
    result = tune(FakeBench(times={FAST: [75.0]}), monkeypatch, "--json", "--quick", "-q")
    assert result.stderr == ""
    report = json.loads(result.stdout)
    assert (report["device"], report["arch"]) == ("A Card", "sm_80")
    assert report["file"] == str(tuned_path("A Card"))
    first = report["kernels"][0]
    assert first["tile"] == FAST._asdict()
    assert (first["op"], first["weight"], first["m"], first["n"], first["k"]) == (
        "qkv", "dense", 1, 512, 256
    )  # fmt: skip
    assert (first["shipped_us"], first["best_us"], first["gain"]) == (100.0, 75.0, 0.25)
    assert first["tried"] < 16


@pytest.mark.usefixtures("_gpu")
def test_nothing_to_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    result = tune(FakeBench(), monkeypatch)
    assert result.stdout.splitlines()[-1] == "0 of 5 are faster than shipped"
    assert not tuned_path("A Card").exists()


@pytest.mark.usefixtures("_gpu")
def test_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(launches: Sequence[Launch]) -> None:
        if launches[0].arguments["N"] == SMALL.vocab:  # the last
            raise KeyboardInterrupt
        write(launches, {})

    result = tune(FakeBench(run=run, times={FAST: [75.0]}), monkeypatch)
    assert (result.exit_code, result.stdout) == (130, "")
    assert len(read_entries(tuned_path("A Card"), "sm_80")) == 4
    assert len(list(tuned_path("A Card").parent.iterdir())) == 1


@pytest.mark.usefixtures("_gpu")
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["tune", "--shape", "gpt2"], "unknown shape"),
        (["tune", "--weight", "int3"], "unknown kind of weight"),
        (["tune", "--tokens", "65"], "no kernel takes 65 tokens"),
        (["warmup", "--shape", "gpt2"], "unknown shape"),
        (["warmup", "--quant", "int3"], "choose int8, int4"),
        (["warmup", "nowhere.bin"], "nowhere.bin"),
    ],
)
def test_unknown(
    arguments: list[str], reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    monkeypatch.setattr(cuda_bench, "CudaBench", FakeBench)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        program.main(["kernels", *arguments], prog_name="llama2gpu")
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1
    assert reason in line


@pytest.fixture
def warmed(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """The launches that `warm` is handed; the first was there, the second fails if asked to."""
    handed: list[Launch] = []

    def warm(launches: Sequence[Launch], told: Any) -> list[Warmed]:
        handed.extend(launches)
        done = [Warmed(launches[0], True), Warmed(launches[1], False)]
        for i, one in enumerate(done):
            told(i + 1, len(done), one)
        return done

    monkeypatch.setattr(warming, "warm", warm)
    return handed


@pytest.mark.usefixtures("_gpu")
def test_warmup(warmed: list[Launch]) -> None:
    result = call("warmup", "--shape", "small", "--quant", "int4", "--tokens", "1,128")
    first, second = result.stderr.splitlines()
    assert result.exit_code == 0
    assert first.split() == ["1/2", "embed", "was", "there"]
    assert second.split()[:2] == ["2/2", "qkv"]
    assert "4 bits, 512×256, blocks of 1×8" in second
    assert second.endswith("compiled")
    assert result.stdout.startswith("2 kernels in ")
    assert result.stdout.endswith(", 1 of them compiled now\n")
    names = {launch.name for launch in warmed}
    assert {"_decode_kernel", "_prefill_kernel", "_advance_kernel", "_head_kernel"} <= names
    kinds = {x.arguments["p_k"].dtype for x in warmed if x.name == "_decode_kernel"}
    assert kinds == {torch.bfloat16, torch.int8}


@pytest.mark.usefixtures("_gpu")
def test_warmup_json(warmed: list[Launch]) -> None:
    result = call("warmup", "--shape", "small", "--tokens", "1", "--json", "-q")
    assert result.stderr == ""
    first, second = json.loads(result.stdout)
    assert (first["kernel"], first["cached"], first["error"]) == ("_embed_kernel", True, None)
    assert (second["kernel"], second["cached"]) == ("_qkv_kernel", False)
    assert second["constants"]["BLOCK_N"] == tile_of(warmed[1]).block_n


@pytest.mark.usefixtures("_gpu")
def test_warmup_of_a_checkpoint(warmed: list[Launch]) -> None:
    assert call("warmup", "stories", "--quant", "none", "--tokens", "1").exit_code == 0
    from llama2gpu.checkpoints import open_checkpoint

    vocab = open_checkpoint("stories").config.vocab
    assert {x.arguments["N"] for x in warmed if x.name == "_head_kernel"} == {vocab}


@pytest.mark.usefixtures("_gpu")
def test_warmup_takes_tuned_tiles(warmed: list[Launch], monkeypatch: pytest.MonkeyPatch) -> None:
    from llama2gpu.backends.triton import TritonBackend
    from llama2gpu.kernels.tuned import Tuned, load_tuned

    tune(FakeBench(times={FAST: [75.0]}), monkeypatch)
    made = TritonBackend.__init__

    def with_file(self: Any, device: torch.device, **rest: Any) -> None:
        file: Tuned | None = None
        if device.type == "cpu":
            file = load_tuned("A Card", TritonBackend(torch.device("meta")).arch)
        made(self, device, **({"tuned": file} | rest))

    monkeypatch.setattr(TritonBackend, "__init__", with_file)
    call("warmup", "--shape", "small", "--quant", "none", "--tokens", "1")
    assert {tile_of(x) for x in warmed if x.name == "_gate_up_kernel"} == {FAST}


@pytest.mark.usefixtures("_gpu")
def test_warmup_that_fails(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def warm(launches: Sequence[Launch], told: Any) -> list[Warmed]:
        return [Warmed(launches[0], True), Warmed(launches[1], False, "out of resource")]

    monkeypatch.setattr(warming, "warm", warm)
    with pytest.raises(SystemExit) as ended:
        program.main(["kernels", "warmup", "--shape", "small"], prog_name="llama2gpu")
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "1 of 2 kernels do not compile for cpu; qkv: out of resource" in line


def test_a_model_or_a_shape() -> None:
    result = call("warmup", "stories", "--shape", "llama2-7b")
    assert result.exit_code == 2
    assert "exclude each other" in result.stderr

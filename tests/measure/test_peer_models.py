"""Whole models in turns: transformers for real on a tiny model, a `llama-bench` made up."""

import itertools
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from bench.peers import main
from llama2gpu.cli import bench_options
from llama2gpu.config import Config
from llama2gpu.engine import Engine
from llama2gpu.errors import BackendError
from llama2gpu.measure import decode, llama_cpp, peer_models, shapes, transformers_llama
from llama2gpu.measure.llama_cpp import llama_bench
from llama2gpu.measure.peer_models import difference, drawn, measure_models
from llama2gpu.measure.peers import PEERS, Compared, Ratio
from llama2gpu.measure.results import NAME, read_results
from llama2gpu.measure.subject import Subject
from llama2gpu.measure.transformers_llama import Greedy, shared_tensors
from llama2gpu.request import Token
from tests.measure.fake_peers import write_program

TINY = Config(dim=64, hidden=128, layers=2, heads=4, kv_heads=2, head_dim=16, vocab=99, context=64)
#: What follows the graph that torch.compile finds, as Python.
TRACED: Any = partial(torch.compile, backend="eager", fullgraph=True)
SUBJECT = Subject("tiny", device="cpu", dtype="fp32")
BOTH = ["transformers", "transformers compiled"]

#: Of what PyTorch itself does as it compiles.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A `llama-bench` on PATH."""
    pytest.importorskip("gguf")
    monkeypatch.setenv("PATH", str(tmp_path))
    return write_program(tmp_path)


def run(
    subject: Subject = SUBJECT, names: tuple[str, ...] = ("transformers",), **how: Any
) -> Compared:
    """Measured with a clock on which every phase takes a second."""
    clock = itertools.count().__next__
    return measure_models(subject, 8, 4, 2, names, **{"compile": TRACED, "clock": clock} | how)


@pytest.mark.parametrize(
    ("dtype", "quant", "form"),
    [("fp32", "none", "none"), ("bf16", "none", "none"), ("bf16", "int4:32", "int4:32 as bf16"),
     ("fp32", "int8+head", "int8+head as fp32")],
)  # fmt: skip
def test_transformers_gives_the_same(dtype: str, quant: str, form: str) -> None:
    found = run(Subject("tiny", device="cpu", dtype=dtype, quant=quant))
    assert (found.absent, found.wrong) == ({}, {})
    assert [row.backend for row in found.rows] == ["llama2gpu torch", *BOTH]
    assert [row.quant for row in found.rows] == [quant, form, form]
    for row in found.rows:
        assert row.rounds == [{"prefill_rate": 8.0, "decode_rate": 4.0}] * 2
        assert (row.bench, row.depth, row.tokens, row.dtype) == ("peers", 8, 4, dtype)
        assert row.machine["transformers"].startswith("5.")
    one = {"prefill_rate": Ratio(1, 1, 1), "decode_rate": Ratio(1, 1, 1)}
    assert [row.ratios for row in found.rows] == [{}, one, one]


def test_tied_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    tied = Config(**{**vars(TINY), "tied": True})
    monkeypatch.setitem(shapes.SHAPES, "tiny", tied)
    found = run()
    assert (found.absent, found.wrong, len(found.rows)) == ({}, {}, 3)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("fault", ["gates and ups", "rows of q and k", "a norm"])
def test_other_weights_are_seen(monkeypatch: pytest.MonkeyPatch, fault: str, dtype: str) -> None:
    real = transformers_llama.transformers_llama

    def spoiled(checkpoint: Any, *rest: Any) -> Any:
        model = real(checkpoint, *rest)
        layer = model.model.layers[0]
        if fault == "gates and ups":
            layer.mlp.gate_proj, layer.mlp.up_proj = layer.mlp.up_proj, layer.mlp.gate_proj
        elif fault == "a norm":
            layer.input_layernorm.weight.data[:16] *= 3
        else:
            layer.self_attn.q_proj.weight.data = checkpoint.read("layers.0.wq")
        return model

    monkeypatch.setattr(peer_models, "transformers_llama", spoiled)
    wide = Config(**{**vars(TINY), "dim": 1024, "head_dim": 64, "hidden": 512})
    monkeypatch.setitem(shapes.SHAPES, "tiny", wide)
    found = run(Subject("tiny", device="cpu", dtype=dtype))
    assert list(found.wrong) == BOTH
    assert all("log-probabilities of token" in told for told in found.wrong.values())
    assert [row.backend for row in found.rows] == ["llama2gpu torch"]


@pytest.mark.parametrize(
    ("logits", "wrong"),
    [
        ([2.0, 1.0, 0.0], False),
        ([2.1, 1.0, 0.0], False),
        ([2.0, 1.0, 1.0], True),
        ([1.0, 2.0, 0.0], True),
        ([2.0, torch.nan, 0.0], True),
    ],
)
def test_difference_of_log_probabilities(logits: list[float], wrong: bool) -> None:
    ours = torch.tensor([2.0, 1.0, 0.0]).log_softmax(0).tolist()
    token = Token(0, ours[0], tuple(enumerate(ours)))
    assert bool(difference([token], torch.tensor([logits]), 0.2)) == wrong


def test_what_does_not_compile_is_named() -> None:
    def fail(step: Any) -> Any:
        raise RuntimeError("no C++\ncompiler")

    found = run(compile=fail)
    assert found.absent == {"transformers compiled": "RuntimeError: no C++ compiler"}
    assert [row.backend for row in found.rows] == ["llama2gpu torch", "transformers"]


def test_another_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object) -> Any:
        raise TypeError("unexpected argument")

    monkeypatch.setattr(peer_models, "transformers_llama", fail)
    found = run()
    assert found.absent == {"transformers": "TypeError: unexpected argument"}
    assert len(found.rows) == 1


def test_dense_weights_are_not_copied() -> None:
    model = SUBJECT.open(16)
    shared = shared_tensors(model)
    checkpoint = SUBJECT.random(torch.device("cpu"))
    names = ("wv", "wo", "w1", "w2", "w3")
    assert set(shared) == {"embed", "output"} | {f"layers.{n}.{x}" for n in (0, 1) for x in names}
    for name, tensor in shared.items():
        assert torch.equal(tensor, checkpoint.read(name)), name
    theirs = transformers_llama.transformers_llama(
        checkpoint, torch.float32, torch.device("cpu"), shared
    )
    head = model.weights.output.data
    assert theirs.lm_head.weight.data_ptr() == head.data_ptr()
    int8 = Subject("tiny", device="cpu", quant="int8").open(16)
    assert set(shared_tensors(int8)) == {"embed", "output"}


def test_orders_alternate(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    real, own = Greedy.answer, decode.answer

    def answer(self: Greedy, *given: Any) -> tuple[float, float]:
        ran.append("eager" if self._static is None else "static")
        return real(self, *given)

    def ours(*given: Any) -> tuple[float, float]:
        ran.append("ours")
        return own(*given)

    monkeypatch.setattr(Greedy, "answer", answer)
    monkeypatch.setattr(peer_models, "answer", ours)
    run()
    assert ran[-6:] == ["ours", "eager", "static", "static", "eager", "ours"]


def test_a_second_prompt_starts_anew_and_compiles_nothing() -> None:
    model = SUBJECT.open(32)
    engine = Engine(model)
    theirs = transformers_llama.transformers_llama(
        SUBJECT.random(torch.device("cpu")), torch.float32, torch.device("cpu"), {}
    )
    graphs: list[Any] = []

    def compiled(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    greedy = Greedy(theirs, 16, partial(torch.compile, backend=compiled, fullgraph=True))
    for prompt in ([1, 2, 3], [7, 8]):
        tokens = drawn(engine, prompt, 4)
        logits = greedy.logits(prompt, [token.id for token in tokens[:-1]])
        assert difference(tokens, logits, 1e-3) == ""
        assert logits.argmax(-1).tolist() == [token.id for token in tokens]
        greedy.answer(prompt, 4, itertools.count().__next__)
    assert len(graphs) == 1


def test_llama_cpp(program: Path) -> None:
    found = run(Subject("tiny", device="cpu", quant="int4:32", threads=1), ("llama.cpp",))
    assert (found.absent, found.wrong) == ({}, {})
    theirs = found.rows[1]
    assert (theirs.backend, theirs.quant) == ("llama.cpp", "Q4_0")
    assert theirs.rounds == [{"prefill_rate": 40.0, "decode_rate": 8.0}] * 2
    assert theirs.ratios["decode_rate"].median == 0.5
    assert theirs.machine["llama.cpp"] == "7 (abc)"
    words = [json.loads(line) for line in program.with_name("log").read_text().splitlines()]
    asked = [dict(zip(one[::2], one[1::2], strict=True)) for one in words if "-m" in one]
    assert [(a["-p"], a["-n"], a.get("-d")) for a in asked] == 3 * [
        ("8", "0", None), ("0", "4", "8")
    ]  # fmt: skip
    assert {(a["-ngl"], a["-t"]) for a in asked} == {("0", "1")}
    assert not Path(asked[0]["-m"]).exists()


def test_llama_cpp_that_fails_is_named(program: Path) -> None:
    write_program(program.parent, fails=True)
    found = run(names=("llama.cpp",))
    assert found.absent == {"llama.cpp": f"{program} failed: main: error: no such thing"}
    assert len(found.rows) == 1


def test_llama_cpp_on_a_gpu(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "resolve_device", lambda name: torch.device("cuda"))
    with pytest.raises(BackendError, match="sees no GPU"), llama_bench(program, SUBJECT, 8, 4):
        pass
    write_program(program.parent, devices="CUDA0: NVIDIA H200 (143156 MiB, 142000 MiB free)")
    with llama_bench(program, SUBJECT, 8, 4) as (kind, bench):
        assert kind == "F32"
        assert bench.threads == torch.get_num_threads()  # as ours has
        assert bench() == (40.0, 8.0)
    assert '"-ngl", "999"' in program.with_name("log").read_text()


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> Result:
    """The script in this process, with small rounds."""
    monkeypatch.setattr(bench_options, "apart", lambda work: work())
    monkeypatch.setattr(peer_models, "compiler", lambda device: TRACED)
    small = ["--shape", "stories260k", "--device", "cpu", "--depth", "4", "--tokens", "2"]
    return CliRunner().invoke(main, [*small, "--repeats", "2", *map(str, words)])


def test_the_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("llama2gpu.measure.peers.which", lambda name: None)
    path = tmp_path / "peers.json"
    result = command(monkeypatch, "--quant", "none", "--quant", "int4:32", "-o", path)
    assert result.exit_code == 0, result.output
    for name in ("llama2gpu torch", *BOTH, "tinygemm", "int4:32 as bf16", "project_add, attention"):
        assert name in result.stdout
    for name in ("llama.cpp", "gemlite", "liger-kernel"):
        assert f"absent: {name}: " in result.stdout
    rows = read_results(path)
    names = {tuple(row[field] for field in NAME) for row in rows}
    assert len(names) == len(rows) == 6 + 2
    assert json.loads(path.read_text())["absent"]["gemlite"] == "needs a CUDA GPU"
    assert all(row["machine"]["torch"] == torch.__version__ for row in rows)


def test_the_script_in_json(monkeypatch: pytest.MonkeyPatch) -> None:
    result = command(monkeypatch, "--only", "tinygemm,gemlite", "--json", "-q", "--batch", "2")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    found = json.loads(result.stdout)
    assert {row["backend"] for row in found["rows"]} == {"llama2gpu torch", "tinygemm"}
    assert found["rows"][1]["ratios"]["us"]["median"] > 0
    assert found["absent"]["gemlite"] == "needs a CUDA GPU"
    assert found["wrong"] == {}


def test_the_script_fails_where_a_result_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = shared_tensors

    def wrong(model: Any) -> Any:
        return {name: -x if name == "output" else x for name, x in real(model).items()}

    monkeypatch.setattr(peer_models, "shared_tensors", wrong)
    result = command(monkeypatch, "--only", "transformers")
    assert result.exit_code == 1
    assert "wrong: transformers: log-probabilities" in result.stdout


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["--only", "vllm"], 1, f"unknown peer 'vllm': choose {', '.join(PEERS)}"),
        (["--quant", "int5"], 2, "int5"),
        (["--backend", "nothing"], 1, "nothing"),
        (["--depth", "0"], 2, "--depth"),
        (["-o", "/nowhere/x.json"], 1, "/nowhere/x.json"),
    ],
)
def test_bad_input(
    monkeypatch: pytest.MonkeyPatch, words: list[str], status: int, told: str
) -> None:
    result = command(monkeypatch, *words)
    assert result.exit_code == status
    assert told in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(("kind", "mode"), [("cpu", "default"), ("cuda", "reduce-overhead")])
def test_a_gpu_compiles_with_graphs(monkeypatch: pytest.MonkeyPatch, kind: str, mode: str) -> None:
    asked: list[dict[str, Any]] = []

    def compile(step: Any, **options: Any) -> Any:
        asked.append(options)
        return step

    monkeypatch.setattr(torch, "compile", compile)
    transformers_llama.compiler(torch.device(kind))(print)
    assert asked == [{"mode": mode, "fullgraph": True, "dynamic": False}]

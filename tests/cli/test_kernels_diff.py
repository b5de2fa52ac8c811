"""`llama2gpu kernels diff`, as a user meets it, with a backend that is plugged in and wrong."""

import json
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from llama2gpu.backends import choose as choosing
from llama2gpu.cli.main import program
from llama2gpu.kernels.launch import INTERPRETED
from llama2gpu.measure.op_walk import Place
from tests.measure import faults

KEYS = {
    "model", "a", "b", "dtype", "quant", "kv_dtype", "tolerance", "tokens", "differs", "first",
    "chunks", "other_chunks", "logits", "logits_noise", "spots", "machine",
}  # fmt: skip
BOUNDS = {"error", "noise_a", "noise_b", "limit"}


def diff(*words: object) -> Result:
    words = ("--device", "cpu", "--tokens", "24", *words)
    return CliRunner().invoke(program, ["kernels", "diff", *map(str, words)])


@pytest.fixture
def tiny(model: Path, tokenizer: Path) -> list[str]:
    """Sixteen positions and weights of zero."""
    return ["--model", str(model), "--tokenizer", str(tokenizer)]


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Plugs in a backend whose op at a place is wrong."""

    def plug(place: Place, fault: faults.Fault = faults.scaled) -> None:
        point = EntryPoint("faulty", f"{faults.__name__}:Faulty", choosing.ENTRY_POINTS)
        monkeypatch.setattr(choosing, "entry_points", lambda group: [point])
        monkeypatch.setattr(faults.Faulty, "place", place)
        monkeypatch.setattr(faults.Faulty, "fault", staticmethod(fault))

    return plug


def test_a_table_and_where_they_part(faulty: Any) -> None:
    faulty(Place(2, "project_add", "w_o"))
    result = diff("--a", "faulty", "--b", "numpy", "--dtype", "fp32")
    *rows, logits, noise, last = result.stdout.splitlines()
    assert result.exit_code == 1
    assert last.startswith(
        "faulty and numpy differ first at layer 2, project_add w_o, prefill: largest error "
    )
    assert logits.startswith("logits of faulty and numpy: KL ")
    assert noise.startswith("logits of numpy in other chunks: KL ")
    wrong = [row.split()[:3] for row in rows if row.split()[-1] == "differs"]
    assert wrong == [["project_add", "w_o", "2"]]
    assert len(rows) == 2 + 10
    assert max(map(len, rows)) <= 100
    assert result.stderr == (
        "stories · faulty on cpu beside numpy on cpu · dtype fp32 · "
        "24 tokens, the last 8 one by one\n"
    )


def test_no_difference() -> None:
    result = diff("--a", "torch", "--b", "numpy", "-q", "--layers", "--kv-dtype", "int8")
    *rows, last = result.stdout.splitlines()
    assert (result.exit_code, result.stderr, last) == (0, "", "no op of torch differs from numpy's")
    assert sum(row.rstrip().endswith("agrees") for row in rows) == 3 * (2 + 4 * 7)


def test_json(faulty: Any) -> None:
    def gone(out: Any) -> None:
        out[:] = float("nan")

    faulty(Place(3, "attention"), gone)
    result = diff("--a", "faulty", "--b", "torch", "--json", "--quant", "int4", "--dtype", "bf16")
    found = json.loads(result.stdout, parse_constant=pytest.fail)
    assert result.exit_code == 1
    assert "quantized to int4, group 128" in result.stderr
    assert set(found) == KEYS
    assert found["a"] == {"backend": "faulty", "device": "cpu", "activations": "bfloat16"}
    assert (found["dtype"], found["quant"], found["kv_dtype"]) == (
        "bf16",
        "int4, group 128",
        "auto",
    )
    assert (found["tokens"], found["tolerance"], found["differs"]) == (24, "bfloat16", True)
    assert (found["chunks"], found["other_chunks"]) == ([16] + [1] * 8, [6, 6, 4, 8])
    first = found["first"]
    assert (first["layer"], first["op"], first["part"], first["phase"], first["verdict"]) == (
        3, "attention", None, "prefill", "differs"
    )  # fmt: skip
    assert first["error"] == {"largest": None, "rms": None}
    # one token at a time a whole layer is one call of the compiled kernels, or else it is wrong too
    assert found["logits"].pop("agreement") <= 8 / 24
    assert found["logits"] == {"divergence": None, "divergence_99": None}
    assert found["logits_noise"]["agreement"] > 0.5
    for spot in found["spots"]:
        assert all(set(spot[name]) == {"largest", "rms"} for name in BOUNDS)
    wrong = {(s["layer"], s["op"]) for s in found["spots"] if s["verdict"] != "agrees"}
    assert wrong == {(3, "attention")}


def test_the_same_backend_twice(tiny: list[str]) -> None:
    result = diff(*tiny, "--a", "torch", "--b", "torch", "--tokens", 16, "--json", "-q")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["differs"], found["first"]) == (0, False, None)
    assert found["logits"] == {"divergence": 0.0, "divergence_99": 0.0, "agreement": 1.0}


def test_rope_scaling_lets_more_tokens_in(tiny: list[str]) -> None:
    words = ["--a", "torch", "--b", "torch", "--tokens", 20, "--json", "-q"]
    assert diff(*tiny, *words, "--rope-scaling", "yarn:2").exit_code == 0
    assert diff(*tiny, *words).exit_code == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--b", "nonsense"], "unknown backend 'nonsense': choose auto, "),
        (["--b", "cupy"], "backend 'cupy' can't run here: "),
        (["--b", "torch", "--tokens", "17"], "17 tokens are more than the 16 "),
        (["--b", "torch", "--tokens", "12", "--text", "{text}"], "the text has 5 tokens, fewer "),
        (["--b", "torch", "--text", "none.txt"], "can't read none.txt: "),
        (["--b", "torch", "--model", "none.bin"], "none.bin"),
        (["--b", "torch", "--device", "cuda:77"], "device 'cuda:77' is not there"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, tiny: list[str], tmp_path: Path
) -> None:
    text = tmp_path / "short.txt"
    text.write_text("ab ab")
    result = diff(*tiny, "--a", "torch", *(word.format(text=text) for word in words))
    (line,) = result.stderr.splitlines()
    assert (result.exit_code, result.stdout) == (1, "")
    assert line.startswith("llama2gpu: error: ")
    assert message in line


@pytest.mark.skipif(INTERPRETED, reason="Triton runs here")
def test_a_backend_that_can_not_run_says_why() -> None:
    result = diff("--a", "triton", "--b", "torch")
    assert result.exit_code == 1
    assert (
        "backend 'triton' can't run here: no GPU is at hand: use --backend torch" in result.stderr
    )


@pytest.mark.parametrize(
    "words", [[], ["--a", "torch"], ["--a", "torch", "--b", "torch", "--tokens", "1"]]
)
def test_wrong_usage(words: list[str]) -> None:
    assert diff(*words).exit_code == 2

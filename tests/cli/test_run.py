"""`llama2gpu run` and `doctor`, as a user meets them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from llama2gpu.backends import choose
from llama2gpu.cli.main import program
from tests.model.test_golden import GREEDY, SAMPLED


def run(*words: object) -> Result:
    return CliRunner().invoke(program, [str(word) for word in words])


@pytest.fixture
def tiny(model: Path, tokenizer: Path) -> list[str]:
    """`run` on a tiny model of zeros: every logit is 0, so greedily it writes token 0 forever."""
    words = ["run", "--model", str(model), "--tokenizer", str(tokenizer), "--device", "cpu"]
    return [*words, "-t", "0"]


@pytest.mark.parametrize(
    "how",
    [
        ["--backend", "torch"],
        ["--backend", "numpy"],
        ["--no-kv-cache"],
        ["--prefill", "sequential"],
        ["--threads", "1"],
        ["--op", "attention=numpy", "--op", "linear=numpy"],
    ],
    ids=" ".join,
)
def test_golden(stories: Path, how: list[str]) -> None:
    result = run(
        "run", "--model", stories / "stories260K.bin", "--tokenizer", stories / "tok512.bin",
        "-t", "0", "-n", "256", *how,
    )  # fmt: skip
    assert (result.exit_code, result.stdout) == (0, GREEDY + "\n")


def test_sampled_as_in_c(stories: Path) -> None:
    result = run(
        "run", "--model", stories / "stories260K.bin", "-t", "1.0", "-p", "0.9",
        "--seed", "133742", "--sampler", "llama2c",
    )  # fmt: skip
    assert result.stdout.startswith(SAMPLED)


def test_first_and_last_line_on_stderr(tiny: list[str]) -> None:
    result = run(*tiny, "ab", "-n", "3")
    first, last = result.stderr.splitlines()
    assert "model.bin" in first
    assert "backend torch · device cpu · dtype fp32" in first
    for figure in ("load", "first token", "prefill", "decode", "GB/s", "peak memory"):
        assert figure in last


def test_quiet(tiny: list[str]) -> None:
    assert run(*tiny, "ab", "-n", "3", "--quiet").stderr == ""


def test_json(tiny: list[str]) -> None:
    answer = json.loads(run(*tiny, "ab", "-t", "0", "-n", "3", "--json", "--logprobs", "2").stdout)
    assert (answer["tokens"], answer["stop_reason"]) == ([0, 0, 0], "length")
    assert answer["prompt_tokens"] >= 2
    assert len(answer["logprobs"]) == 3
    assert {"text", "stats"} <= set(answer)


def test_bytes_of_the_cache(tiny: list[str]) -> None:
    asked = [*tiny, "ab", "-n", "3", "--json", "--quiet"]
    for kind, element in (("auto", 4), ("int8", 1 + 4 / 4)):  # a scale for each head of 4
        stats = json.loads(run(*asked, "--kv-dtype", kind).stdout)["stats"]
        assert stats["cache_bytes"] == 64 * 2 * 2 * 4 * element  # a page; 2 layers of k and v


def test_echo(tiny: list[str]) -> None:
    assert run(*tiny, "ab", "-n", "1").stdout.startswith("ab")
    assert not run(*tiny, "ab", "-n", "1", "--no-echo").stdout.startswith("ab")


def test_show_prompt(tiny: list[str]) -> None:
    result = run(*tiny, "ab", "-n", "1", "--show-prompt")
    assert "prompt: 'ab'" in result.stderr
    assert "ids: [1," in result.stderr


def test_prompt_file(tiny: list[str], tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text("ba")
    assert run(*tiny, "--prompt-file", path, "-n", "1").stdout.startswith("ba")


def test_no_tokens(tiny: list[str]) -> None:
    result = run(*tiny, "ab", "-n", "0")
    assert (result.exit_code, result.stdout) == (0, "ab\n")


def test_without_bound_it_fills_the_context(tiny: list[str]) -> None:
    answer = json.loads(run(*tiny, "", "-n", "-1", "--json").stdout)
    assert (len(answer["tokens"]), answer["stop_reason"]) == (16, "context")


def test_past_its_context_a_line_warns(tiny: list[str]) -> None:
    result = run(*tiny, "", "-n", "-1", "--ctx", "40", "--json")
    assert len(json.loads(result.stdout)["tokens"]) == 40
    first, headline, _ = result.stderr.splitlines()
    assert first.startswith(
        "llama2gpu: a context of 40 was asked for, but 'model.bin' has one of 16"
    )
    assert headline.startswith("model.bin ")
    assert run(*tiny, "", "--ctx", "40", "--quiet", "-n", "1").stderr == ""
    assert run(*tiny, "", "--ctx", "40", "-n", "1").stderr.startswith(first)
    assert len(run(*tiny, "", "--ctx", "16", "-n", "1").stderr.splitlines()) == 2


def test_rope_scaling_stretches_the_context(tiny: list[str]) -> None:
    result = run(*tiny, "", "-n", "-1", "--rope-scaling", "linear:2.5", "--json")
    answer = json.loads(result.stdout)
    assert (len(answer["tokens"]), answer["stop_reason"]) == (40, "context")
    assert len(result.stderr.splitlines()) == 2
    beyond = run(*tiny, "", "-n", "1", "--rope-scaling", "yarn:2", "--ctx", "33").stderr
    assert "but 'model.bin' has one of 32" in beyond


@pytest.mark.parametrize("text", ["dynamic:4", "linear", "yarn:", "yarn:x", "yarn:0.5", "yarn:nan"])
def test_scalings_that_are_none(tiny: list[str], text: str) -> None:
    result = run(*tiny, "--rope-scaling", text)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"RoPE scaling '{text}' is none: give TYPE:FACTOR" in result.stderr


def test_stop_string(tiny: list[str]) -> None:
    words = [*tiny, "ab", "--json", "--logit-bias", "4=50", "--stop", "\x01\x01"]
    answer = json.loads(run(*words).stdout)
    assert answer["stop_reason"] == "stop"
    assert answer["text"] == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backend", "nonsense"], "unknown backend 'nonsense'"),
        (["--device", "nonsense"], "unknown device 'nonsense'"),
        (["--device", "cuda:99"], "not there"),
        (["--op", "nonsense=torch"], "unknown op 'nonsense'"),
        (["--op", "attention=nonsense"], "unknown backend 'nonsense'"),
        (["--ctx", str(2**30 + 1)], "give 1 to 1073741824; the model has 16"),
        (["--rope-scaling", "yarn:1e9"], "give a factor up to 67108864"),
        (["--tokenizer", "/nonexistent"], "/nonexistent"),
        (["--model", "/nonexistent"], "/nonexistent"),
        (["--prompt-file", "/nonexistent"], "/nonexistent"),
        (["a " * 40], "the context holds 16"),
        (["--logit-bias", "9999=1"], "token 9999"),
        (["--sampler", "llama2c", "-k", "3"], "top-k"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(tiny: list[str], words: list[str], message: str) -> None:
    result = run(*tiny, *words)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("llama2gpu: error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["--top-p", "0"],
        ["-t", "-1"],
        ["-n", "-2"],
        ["--dtype", "fp8"],
        ["--quant", "int2"],
        ["--op", "attention"],
        ["--logit-bias", "a=b"],
        ["--quiet", "--show-prompt"],
        ["ab", "--prompt-file", "x"],
        ["--logprobs", "3"],
        ["--nonsense"],
    ],
    ids=" ".join,
)
def test_wrong_usage(tiny: list[str], words: list[str]) -> None:
    assert run(*tiny, *words).exit_code == 2


def test_control_c_keeps_what_was_made(stories: Path) -> None:
    command = [
        sys.executable, "-m", "llama2gpu", "run", "--model", str(stories / "stories260K.bin"),
        "--ignore-eos", "-t", "0", "-n", "-1", "--no-kv-cache",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    assert process.stdout is not None
    begun = process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert GREEDY.startswith((begun + rest).rstrip("\n")[:200])
    assert rest.endswith("\n")
    assert "Traceback" not in errors
    assert "peak memory" in errors.splitlines()[-1]


def test_closed_stderr(tiny: list[str]) -> None:
    words = [sys.executable, "-m", "llama2gpu", *tiny, "ab", "-t", "0", "-n", "2"]
    done = subprocess.run(["sh", "-c", 'exec "$@" 2>&-', "sh", *words], stdout=subprocess.PIPE)
    assert done.returncode == 0
    assert done.stdout.startswith(b"ab")


def test_prompt_file_is_taken_as_it_is(tiny: list[str], tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes(b"a\r\nb\xff")
    result = run(*tiny, "--prompt-file", path, "-n", "0", "--show-prompt")
    assert "prompt: 'a\\r\\nb\ufffd'" in result.stderr


def test_doctor_says_what_it_knows_before_it_fails() -> None:
    result = run("doctor", "--device", "cuda:99")
    assert result.exit_code == 1
    assert "packages" in result.stdout
    assert "not there" in result.stderr


def test_doctor() -> None:
    result = run("doctor", "--device", "cpu")
    assert result.exit_code == 0
    for word in ("torch", "numpy", "runs", "sample (composed)", "rope", "attend"):
        assert word in result.stdout


def test_explain(tiny: list[str]) -> None:
    result = run(*tiny, "a", "-n", "1", "--explain", "--backend", "numpy", "--op", "rope=torch")
    assert result.exit_code == 0
    assert "chosen    numpy (rope from torch) on cpu: asked for by name" in result.stderr
    assert "rope (borrowed from torch)" in result.stderr
    automatic = run(*tiny, "a", "-n", "1", "--explain")
    assert "chosen    torch on cpu: what auto takes on such a device" in automatic.stderr
    assert run(*tiny, "--explain", "--quiet").exit_code == 2


def test_doctor_tells_what_auto_ruled_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "AUTO_ORDER", {"cpu": ("triton", "cupy", "torch")})
    result = run("doctor")
    assert "torch on cpu: the first of triton, cupy, torch that runs here" in result.stdout
    assert "  not cupy: CuPy needs a CUDA GPU, this is cpu" in result.stdout
    report = json.loads(run("doctor", "--json").stdout)
    assert set(report["ruled_out"]) == {"triton", "cupy"}


def test_doctor_json() -> None:
    report = json.loads(run("doctor", "--json", "--device", "cpu", "--op", "rope=numpy").stdout)
    assert report["ops"]["rope"] == "borrowed from numpy"
    assert all({"decode", "prefill", "why"} == set(way) for way in report["routes"].values())
    assert "few tokens" in report["row_kernels"]["detail"]
    assert {row["name"]: row["runs"] for row in report["backends"]} == {
        "torch": True,
        "triton": False,
        "cupy": False,
        "numpy": True,
    }

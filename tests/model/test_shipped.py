"""The model that comes with the package: its files, its stories, its equality with transformers."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

import llama2gpu
from llama2gpu.checkpoints import SHIPPED, open_checkpoint
from llama2gpu.tokenizer import load_tokenizer

FOLDER = SHIPPED["stories"]
PROMPTS = ("Once upon a time", "One day, a little dog", "Mia had a red kite.", "")


def test_shape_suits_quantization() -> None:
    c = open_checkpoint("stories").config
    assert (c.head_dim, c.dim % 128, c.hidden % 128) == (64, 0, 0)
    assert c.kv_heads < c.heads
    assert 2e6 <= c.parameters <= 5e6
    assert open_checkpoint("stories").dtype == torch.bfloat16


def test_size() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 10_000_000


def test_readme_tells_the_record() -> None:
    record = json.loads((FOLDER / "training.json").read_text())
    text = (FOLDER / "README.md").read_text()
    assert f"{record['held_out_loss']:.4f}" in text
    assert "llama2gpu train" in text


def test_same_greedy_tokens_as_transformers() -> None:
    hf: Any = LlamaForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    llama = llama2gpu.load("stories", dtype="fp32", device="cpu")
    for prompt in PROMPTS:
        ids = llama.tokenizer.encode(prompt)
        with torch.inference_mode():
            wanted = hf.generate(
                torch.tensor([ids]), max_new_tokens=60, do_sample=False, pad_token_id=0
            )[0, len(ids) :].tolist()
        answer = llama.generate(prompt, temperature=0, max_tokens=60)
        assert answer.tokens == [t for t in wanted if t != llama.tokenizer.eos_ids[0]]


def test_transformers_reads_the_tokenizer() -> None:
    hf: Any = AutoTokenizer.from_pretrained(FOLDER)
    ours = load_tokenizer(FOLDER)
    for prompt in PROMPTS:
        assert hf(prompt)["input_ids"] == ours.encode(prompt)


@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_alone_batched_recomputed_and_sequential(backend: str) -> None:
    def told(**how: Any) -> Any:
        return llama2gpu.load("stories", dtype="fp32", device="cpu", backend=backend, **how)

    def texts(llama: Any) -> list[str]:
        return [llama.generate(p, temperature=0, max_tokens=40).text for p in PROMPTS]

    wanted = texts(told())
    together = told().generate_many(PROMPTS, temperature=0, max_tokens=40)
    assert [answer.text for answer in together] == wanted
    assert texts(told(kv_cache=False)) == wanted
    assert texts(told(prefill="sequential")) == wanted


def test_stories_end_by_themselves() -> None:
    llama = llama2gpu.load(dtype="fp32", device="cpu")
    streams = [llama.stream("Once upon a time", seed=seed, max_tokens=500) for seed in range(8)]
    answers = [stream.finish() for stream in streams]
    assert len({answer.text for answer in answers}) == 8
    assert sum(answer.stop_reason == "eos" for answer in answers) >= 7  # or the context is full
    for answer in answers:
        assert 100 <= len(("Once upon a time" + answer.text).split()) <= 320, answer.text


def test_run_without_arguments_from_anywhere(tmp_path: Path) -> None:
    (tmp_path / "stories").mkdir()  # the default is not a matter of the current folder
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-m", "llama2gpu", "run", "-q", "--seed", "1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("Once upon a time")
    assert done.stderr == ""
    assert len(done.stdout.split()) >= 60

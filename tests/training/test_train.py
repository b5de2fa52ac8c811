"""The command as a whole: what it writes loads here and in transformers, alike."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import llama2gpu
from llama2gpu.checkpoints import open_checkpoint, tensor_shapes
from llama2gpu.tokenizer import load_tokenizer
from llama2gpu.training.metrics import read_metrics
from llama2gpu.training.net import Net
from tests.checkpoints.writers import CONFIG, random_tensors, write_huggingface
from tests.training.conftest import Train

FILES = {
    "config.json",
    "generation_config.json",
    "metrics.jsonl",
    "model.safetensors",
    "tokenizer.model",
    "tokenizer_config.json",
    "training.json",
}
PROMPTS = ("Tom saw", "“Look!” said Ana. 0.5", "two  spaces\n\nLily ☃")


def greedy(folder: Path, prompt: str) -> tuple[list[int], list[int]]:
    llama = llama2gpu.load(folder, backend="torch", device="cpu", dtype="fp32")
    ids = llama.tokenizer.encode(prompt)
    return ids, llama.generate(prompt, temperature=0, max_tokens=12).tokens


@pytest.mark.parametrize("more", ["", "--untied --save-as fp32", "--accumulate 2 --dtype fp32"])
def test_same_tokens_as_transformers(train: Train, tmp_path: Path, more: str) -> None:
    from transformers import AutoTokenizer, LlamaForCausalLM

    result = train(more + " --lr 0.02 --steps 20")
    assert result.exit_code == 0, result.output
    out = tmp_path / "out"
    theirs: Any = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32)
    words: Any = AutoTokenizer.from_pretrained(out)
    for prompt in PROMPTS:
        ids, tokens = greedy(out, prompt)
        assert words(prompt)["input_ids"] == ids
        answer = theirs.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=12)
        found = answer[0, len(ids) :].tolist()
        assert found[: len(tokens)] == tokens
        assert found[len(tokens) :] in ([], [2])
    assert (words.bos_token_id, words.eos_token_id) == (1, 2)


def test_folder(train: Train, tmp_path: Path) -> None:
    result = train("--eval-every 4")
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} - {"loss.svg"} == FILES
    assert not (tmp_path / "out.training").exists()
    records = read_metrics(out)
    assert [r.step for r in records] == [1, 2, 3, 4, 5, 6]
    assert [r.step for r in records if r.held_out is not None] == [4, 6]
    saved = json.loads((out / "training.json").read_text())
    assert saved["finished"] is True
    assert saved["held_out_loss"] == records[-1].held_out
    assert "step 4 · loss" in result.stderr
    assert result.stdout == ""


def test_losses_fall_and_repeat(train: Train, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert train("--steps 40 --lr 0.01 --quiet", out=tmp_path / name).output == ""
    first, second = (read_metrics(tmp_path / name) for name in ("a", "b"))
    assert [(r.loss, r.held_out) for r in first] == [(r.loss, r.held_out) for r in second]
    assert first[-1].loss < first[0].loss - 1
    last, start = first[-1].held_out, first[0].loss
    assert last is not None
    assert last < start - 1
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b")]
    assert weights[0] == weights[1]


def test_another_seed_is_another_model(train: Train, tmp_path: Path) -> None:
    train("--seed 1", out=tmp_path / "a")
    train("--seed 2", out=tmp_path / "b")
    first, second = (read_metrics(tmp_path / name)[0].loss for name in ("a", "b"))
    assert first != second


def test_net_is_the_model_that_runs(tmp_path: Path) -> None:
    folder = write_huggingface(tmp_path, CONFIG, random_tensors(CONFIG))
    checkpoint = open_checkpoint(folder)
    net = Net(CONFIG, CONFIG.context, torch.Generator())
    net.load(checkpoint)
    assert set(net.state_dict()) == {name for name, _ in tensor_shapes(CONFIG)}
    from transformers import LlamaForCausalLM

    theirs: Any = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.randint(CONFIG.vocab, (2, 33), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(tokens, labels=tokens).loss
        found = net(tokens[:, :-1], tokens[:, 1:])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_init_from_goes_on(train: Train, text: Path, tmp_path: Path) -> None:
    train("--steps 30 --lr 0.01")
    from tests.training.test_bad_input import run_train

    shape = "--context 32 --batch 4 --threads 1 --steps 2 --lr 1e-5 --device cpu"
    base = tmp_path / "out"
    result = run_train(text, tmp_path / "tuned", f"{shape} --init-from {base}")
    assert result.exit_code == 0, result.output
    before, after = read_metrics(base)[-1].held_out, read_metrics(tmp_path / "tuned")[-1].held_out
    assert before is not None
    assert after == pytest.approx(before, abs=0.05)
    names = [folder / "tokenizer.model" for folder in (base, tmp_path / "tuned")]
    assert names[0].read_bytes() == names[1].read_bytes()


def byte_level(path: Path, bos: bool) -> Path:
    """A tokenizer.json of byte-level BPE, as GPT-2's, or with the template of Llama 3's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        ["Tom saw a red kite."],
        trainers.BpeTrainer(
            vocab_size=270,
            special_tokens=["<|begin_of_text|>", "<|end_of_text|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if bos:
        made.post_processor = processors.TemplateProcessing(
            single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
        )
    made.save(str(path))
    return path


@pytest.mark.parametrize("bos", [True, False])
def test_given_tokenizer_json(train: Train, tmp_path: Path, bos: bool) -> None:
    from transformers import AutoTokenizer

    given = byte_level(tmp_path / "tokenizer.json", bos)
    result = train(f"--tokenizer {given}")
    assert result.exit_code == 0, result.output
    out = tmp_path / "out"
    saved = json.loads((out / "tokenizer_config.json").read_text())
    assert saved["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert saved["add_bos_token"] is bos
    assert "unk_token" not in saved
    theirs: Any = AutoTokenizer.from_pretrained(out)
    ours = load_tokenizer(out)
    assert len(theirs) == ours.vocab
    for prompt in PROMPTS:
        assert theirs(prompt)["input_ids"] == load_tokenizer(given).encode(prompt)
        assert theirs(prompt)["input_ids"] == ours.encode(prompt)


def test_init_from_takes_the_tokenizer_that_runs(text: Path, train: Train, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from tests.training.test_bad_input import run_train

    train()
    base = tmp_path / "out"
    words: Any = AutoTokenizer.from_pretrained(base)
    words.add_tokens([f"<extra{n}>" for n in range(4)])
    words.save_pretrained(tmp_path / "words")
    (base / "tokenizer.json").write_bytes((tmp_path / "words" / "tokenizer.json").read_bytes())
    config = replace(CONFIG, vocab=324)
    write_huggingface(base, config, random_tensors(config))
    shape = "--context 32 --batch 4 --threads 1 --steps 1 --device cpu"
    result = run_train(text, tmp_path / "tuned", f"{shape} --init-from {base}")
    assert result.exit_code == 0, result.output
    assert llama2gpu.load(base, device="cpu").tokenizer.vocab == 324
    assert load_tokenizer(tmp_path / "tuned").vocab == 324
    assert not (tmp_path / "tuned" / "tokenizer.model").exists()

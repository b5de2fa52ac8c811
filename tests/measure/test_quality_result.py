"""What `measure_quality` tells of the shipped model: beside transformers, by hand, of others."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from llama2gpu.api import load
from llama2gpu.checkpoints import SHIPPED, open_checkpoint
from llama2gpu.checkpoints.convert import Target, convert
from llama2gpu.errors import RequestError
from llama2gpu.measure import quality
from llama2gpu.measure.difference import TEXT
from llama2gpu.measure.quality import QualityResult, measure_quality
from llama2gpu.measure.score import Scores
from llama2gpu.tokenizer import load_tokenizer

FOLDER = SHIPPED["stories"]
QUOTED = "“Who can help me?” she asked, and the cat went to look."
DOCUMENTS = [f"{TEXT}{TEXT[:500]}{QUOTED}", "Tom was sad. His mom gave him a big hug."]


def measured(documents: list[str] = DOCUMENTS, **how: Any) -> QualityResult:
    return measure_quality(documents, **{"dtype": "fp32", "device": "cpu", **how})


def transformers_losses(context: int, stride: int) -> torch.Tensor:
    """As the guide on the perplexity of fixed-length models has it: labels of −100 do not count.

    A window there has its last id to predict as well: one more than ours see.
    """
    model: Any = LlamaForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    words: Any = AutoTokenizer.from_pretrained(FOLDER)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for text in DOCUMENTS:
        ids = torch.tensor([[*words(text)["input_ids"], words.eos_token_id]])
        before = 1  # nothing predicts the first id
        for begin in range(0, ids.shape[1], stride):
            end = min(begin + context + 1, ids.shape[1])
            labels = ids[:, begin:end].clone()
            labels[:, : before - begin] = -100
            with torch.inference_mode():
                loss = model(ids[:, begin:end], labels=labels).loss
            total += loss.double() * (end - before)
            count += end - before
            before = end
            if end == ids.shape[1]:
                break
    return torch.stack([total, torch.tensor(count)])


@pytest.mark.parametrize(
    ("context", "stride"), [(384, None), (128, None), (128, 48), (64, 1), (900, None)]
)
def test_perplexity_of_transformers(context: int, stride: int | None) -> None:
    total, count = transformers_losses(context, stride or context).tolist()
    found = measured(context=context, stride=stride)
    assert (found.context, found.stride, found.tokens) == (context, stride or context, count)
    assert found.rows[0].perplexity == pytest.approx(math.exp(total / count), rel=1e-4)
    size = sum(len(text.encode()) for text in DOCUMENTS)
    assert found.bytes == size
    assert (found.windows == len(DOCUMENTS)) == (context == 900)  # past the model's own 384
    assert found.rows[0].bits_per_byte == pytest.approx(total / math.log(2) / size, rel=1e-4)


@pytest.fixture(scope="module")
def told() -> list[str]:
    """A story of the model's own."""
    return [load(dtype="fp32", device="cpu").generate("One day, a dog", seed=1).text]


def test_more_context_predicts_better(told: list[str]) -> None:
    apart, overlapping = (measured(told, context=32, stride=stride).rows[0] for stride in (None, 8))
    assert overlapping.perplexity < apart.perplexity


def test_bytes_of_a_text_cut_short() -> None:
    words = load(dtype="fp32", device="cpu").tokenizer
    ids = words.encode(DOCUMENTS[0])
    found = measured(tokens=20)
    assert found.bytes == len(words.decode(ids[1:21]).encode())
    second = measured([DOCUMENTS[1], DOCUMENTS[0]], tokens=len(words.encode(DOCUMENTS[1])) + 20)
    assert second.bytes == len(DOCUMENTS[1].encode()) + found.bytes


def test_what_is_predicted_may_have_no_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "_bytes", lambda *of: 0)
    assert measured(["a"]).rows[0].bits_per_byte is None


def test_a_first_token_that_is_text_has_no_part_in_the_bytes() -> None:
    words = load(dtype="fp32", device="cpu").tokenizer
    ids = words.encode(QUOTED, bos=False)
    first = len(words.decode(ids[:1]).encode())
    assert quality._bytes(words, [QUOTED], [ids], 999) == len(QUOTED.encode()) - first
    part = len(words.decode(ids[:9]).encode())
    assert quality._bytes(words, [QUOTED], [ids], 8) == part - first


def test_standard_error_is_that_of_other_texts() -> None:
    losses = torch.randn(200, 400, generator=torch.Generator().manual_seed(1)).double() * 0.5 + 2
    found = [quality._exp_mean(x) for x in losses]
    spread = torch.tensor([mean for mean, _ in found]).std().item()
    assert found[0][1] == pytest.approx(spread, rel=0.2)
    assert quality._exp_mean(torch.tensor([1.0])) == pytest.approx((math.e, 0))


def test_percentile() -> None:
    many = torch.zeros(1 << 25, dtype=torch.float64)
    many[: len(many) // 50] = 3.0
    assert Scores(many, many).divergence_99 == 3
    few = torch.arange(101, dtype=torch.float64)
    assert Scores(few, few).divergence_99 == 99


@pytest.mark.parametrize("stride", [0, 65])
def test_a_stride_beyond_the_window(stride: int) -> None:
    with pytest.raises(RequestError, match="a window has 64 tokens: give 1 to 64"):
        measured(context=64, stride=stride)


def copied(folder: Path, **facts: Any) -> Path:
    shutil.copytree(FOLDER, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | facts))
    return folder


def test_against_others(tmp_path: Path) -> None:
    same, other = copied(tmp_path / "same"), copied(tmp_path / "other", rope_theta=400.0)
    (other / "tokenizer.model").unlink()
    found = measured(quants=["int8"], against=[same, str(other)], kv_dtype="int8", tokens=200)
    full, cache, int8, equal, far = found.rows
    assert [row.name for row in found.rows[3:]] == [f"{x}, int8 cache" for x in (same, other)]
    assert equal.divergence == cache.divergence < int8.divergence < far.divergence
    assert far.divergence < far.divergence_99
    assert far.perplexity > full.perplexity
    assert found.other_pieces == {str(same): 0, str(other): 0}


def test_against_a_file_with_its_tokenizer(tmp_path: Path, told: list[str]) -> None:
    checkpoint = open_checkpoint("stories")
    target = Target("gguf", tmp_path / "a.gguf")
    convert(checkpoint, target, load_tokenizer(FOLDER), lambda done, total: None)
    for model, other in (("stories", tmp_path / "a.gguf"), (tmp_path / "a.gguf", "stories")):
        found = measured(told, model=model, against=[other])
        assert found.rows[1].divergence < 1e-9
        assert found.rows[1].change == pytest.approx(0, abs=1e-6)
        assert found.other_pieces[str(other)] < 10


def test_others_keep_their_own_facts(tmp_path: Path, told: list[str]) -> None:
    other = copied(tmp_path / "other")
    found = measured(told, rope_theta=400.0, against=[other])
    assert found.rows[1].perplexity == measured(told).rows[0].perplexity
    assert found.rows[1].perplexity < found.rows[0].perplexity


def test_another_tokenizer_is_told(tmp_path: Path) -> None:
    other = copied(tmp_path / "other")
    data = (other / "tokenizer.model").read_bytes()
    assert data.count("▁Lily".encode()) == 1
    (other / "tokenizer.model").write_bytes(data.replace("▁Lily".encode(), "▁Lulq".encode()))
    assert measured(against=[other], tokens=20).other_pieces == {str(other): 1}


def test_vocabularies_are_compared_first(stories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "score_reference", None)
    with pytest.raises(RequestError, match="vocabulary of 512, which can't be compared with the 2"):
        measured(against=[stories / "stories260K.bin"])

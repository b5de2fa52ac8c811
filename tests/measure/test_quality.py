"""Perplexity and divergence: by hand, against transformers, and of planted errors."""

import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from llama2gpu.api import Llama, load
from llama2gpu.backends import choose_backend
from llama2gpu.build import build_model
from llama2gpu.checkpoints import Checkpoint, RandomCheckpoint, open_checkpoint
from llama2gpu.checkpoints.base import TensorInfo
from llama2gpu.config import Config
from llama2gpu.engine import Engine
from llama2gpu.errors import RequestError
from llama2gpu.measure import quality, score
from llama2gpu.measure.quality import measure_quality
from llama2gpu.measure.score import Window, cut_windows, score_reference
from llama2gpu.quant.spec import QuantSpec

A, B, C = range(3)
TINY = Config(dim=64, hidden=96, layers=2, heads=4, kv_heads=2, head_dim=16, vocab=97, context=64)
STORIES = [
    "Once upon a time there was a girl named Lily. She had a red ball and a cat.",
    "Tom was sad. His toy car broke, and so his mom gave him a big hug.",
]


class Changed(Checkpoint):
    """A checkpoint with some tensors of its own, and noise on the other matrices."""

    def __init__(
        self, base: Checkpoint, own: Mapping[str, torch.Tensor] | None = None, noise: float = 0.0
    ) -> None:
        self.config, self.dtype, self.path, self.format = base.config, base.dtype, base.path, "test"
        self.base, self.own, self.noise = base, own or {}, noise

    def tensors(self) -> Iterator[TensorInfo]:
        return self.base.tensors()

    def read(self, name: str) -> torch.Tensor:
        tensor = self.own.get(name, self.base.read(name))
        if tensor.ndim == 1 or not self.noise:
            return tensor
        random = torch.Generator().manual_seed(len(name))
        return tensor + self.noise * torch.randn(tensor.shape, generator=random)


def engine(checkpoint: Checkpoint, backend: str = "torch") -> Engine:
    return Engine(build_model(checkpoint, choose_backend(backend, "cpu"), "fp32"))


def table_engine(after_a: Sequence[float], after_b: Sequence[float]) -> Engine:
    """A model whose next token depends on the last one alone, with these probabilities."""
    config = Config(dim=2, hidden=2, layers=1, heads=1, kv_heads=1, head_dim=2, vocab=3, context=16,
                    norm_eps=1e-9)  # fmt: skip
    a, b = torch.tensor(after_a).log(), torch.tensor(after_b).log()
    own = {name: torch.zeros(2, 2) for name in ("layers.0.wo", "layers.0.w2")}
    own |= {"layers.0." + name: torch.ones(2) for name in ("attention_norm", "ffn_norm")}
    own |= {"embed": torch.tensor([[1.0, 1.0], [1.0, -1.0], [1.0, 0.0]]), "norm": torch.ones(2)}
    own["output"] = torch.stack([(a + b) / 2, (a - b) / 2], dim=1)
    return engine(Changed(RandomCheckpoint(config, torch.float32), own))


def random_windows(count: int = 5, context: int = 20) -> list[Window]:
    random = torch.Generator().manual_seed(3)
    ids = torch.randint(TINY.vocab, (count, context + 7), generator=random).tolist()
    return cut_windows(ids, context, 10**9)


def test_by_hand() -> None:
    full = table_engine([1 / 2, 1 / 4, 1 / 4], [1 / 8, 1 / 8, 3 / 4])
    other = table_engine([1 / 8, 3 / 4, 1 / 8], [1 / 4, 1 / 4, 1 / 2])
    windows = [Window([A, A, B, C])]
    reference = score_reference(full, windows)
    assert reference.scores.losses.tolist() == pytest.approx(
        [math.log(2), math.log(4), -math.log(3 / 4)], abs=1e-6
    )
    found = score.score(other, windows, reference)
    assert found.losses.tolist() == pytest.approx(
        [math.log(8), -math.log(3 / 4), math.log(2)], abs=1e-6
    )
    after_a = (math.log(4) + math.log(1 / 3) / 2 + math.log(2) / 2) / 2
    after_b = math.log(1 / 2) / 4 + math.log(3 / 2) * 3 / 4
    assert found.divergences.tolist() == pytest.approx([after_a, after_a, after_b], abs=1e-6)
    assert found.divergence == pytest.approx((2 * after_a + after_b) / 3, abs=1e-6)
    assert found.divergence_99 == pytest.approx(after_a, abs=1e-6)
    assert found.agreement == pytest.approx(1 / 3)  # C after B, but not A after A


def transformers_loss(model: Any, window: Window) -> float:
    """Mean over the places that count, of a `LlamaForCausalLM`."""
    labels = torch.tensor([window.ids])
    labels[:, : window.known + 1] = -100
    with torch.inference_mode():
        return float(model(torch.tensor([window.ids]), labels=labels).loss)


@pytest.mark.parametrize(
    ("backend", "stride", "seen"),
    [
        ("torch", None, [(40, 0), (40, 0), (9, 0)]),
        ("numpy", None, [(40, 0), (40, 0), (9, 0)]),
        ("torch", 15, [(40, 0), (40, 25), (40, 25), (40, 25), (29, 25)]),
        ("numpy", 39, [(40, 0), (40, 1), (11, 1)]),
    ],
)
def test_losses_of_transformers(
    backend: str, stride: int | None, seen: list[tuple[int, int]], tmp_path: Path
) -> None:
    torch.manual_seed(7)
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 8, "num_key_value_heads": 2, "initializer_range": 0.2}
    wanted: Any = LlamaForCausalLM(LlamaConfig(vocab_size=98, **sizes)).train(False)
    wanted.save_pretrained(tmp_path)
    documents = torch.randint(98, (3, 90)).tolist()
    windows = cut_windows(documents, 40, 10**9, stride)
    assert [(window.seen, window.known) for window in windows] == seen * 3
    found = score_reference(engine(open_checkpoint(tmp_path), backend), windows).scores.losses
    ends = torch.tensor([window.scored for window in windows]).cumsum(0)[:-1]
    for window, losses in zip(windows, found.tensor_split(ends), strict=True):
        assert abs(losses.mean() - transformers_loss(wanted, window)) < 1e-4


@pytest.mark.parametrize("sizes", [(2048, 1 << 22, 1), (30, 300, 5), (1, 1, 10)])
def test_a_model_does_not_differ_from_itself(
    sizes: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    same, windows = RandomCheckpoint(TINY, torch.float32), random_windows()
    whole = score_reference(engine(same), windows).scores.losses
    monkeypatch.setattr(score, "PASS", sizes[0])
    monkeypatch.setattr(score, "LOOK", sizes[1])
    reference = score_reference(engine(same), windows)
    assert torch.allclose(reference.scores.losses, whole, atol=1e-5)
    assert len(reference.hidden) == sizes[2]
    assert not reference.head.weights.layers
    other = engine(same)
    found = score.score(other, windows, reference)
    assert torch.equal(found.losses, reference.scores.losses)
    assert (found.divergence, found.agreement) == (0, 1)
    assert other.cache.free_pages == other.cache.pages


def test_noise_in_the_weights_shows() -> None:
    base, windows = RandomCheckpoint(TINY, torch.float32), random_windows()
    reference = score_reference(engine(base), windows)
    found = [
        score.score(engine(Changed(base, noise=noise)), windows, reference)
        for noise in (1e-4, 1e-3, 1e-2)
    ]
    divergences = [scores.divergence for scores in found]
    assert 0 < divergences[0] < divergences[1] / 10 < divergences[2] / 100
    assert found[2].agreement < found[0].agreement


def test_vocabularies_must_match() -> None:
    reference = score_reference(table_engine([1 / 3] * 3, [1 / 3] * 3), [Window([A, B])])
    with pytest.raises(RequestError, match="vocabulary of 97 can't be compared with one of 3"):
        score.score(engine(RandomCheckpoint(TINY, torch.float32)), [Window([A, B])], reference)


@given(
    st.lists(st.lists(st.integers(0, 9), max_size=12), max_size=5),
    st.integers(1, 6),
    st.integers(1, 40),
    st.integers(1, 6),
)
def test_each_token_but_the_first_is_predicted_once(
    documents: list[list[int]], context: int, tokens: int, stride: int
) -> None:
    stride = min(stride, context)
    wanted = [id for document in documents for id in document[1:]][:tokens]
    if not wanted:
        with pytest.raises(RequestError, match="too short"):
            cut_windows(documents, context, tokens, stride)
        return
    windows = cut_windows(documents, context, tokens, stride)
    assert [id for window in windows for id in window.ids[window.known + 1 :]] == wanted
    assert all(1 <= window.scored <= window.seen <= context for window in windows)
    assert all(window.known in (0, context - stride) for window in windows)


def test_windows_of_a_long_document() -> None:
    assert cut_windows([range(8), range(3)], 3, 99) == [
        Window(range(4)), Window(range(3, 7)), Window(range(6, 8)), Window(range(3))
    ]  # fmt: skip


def test_windows_that_overlap() -> None:
    assert cut_windows([range(9), range(3)], 4, 10, 3) == [
        Window(range(5)), Window(range(3, 8), 1), Window(range(6, 9), 1), Window(range(3))
    ]  # fmt: skip
    assert cut_windows([range(99)], 4, 6, 1) == [
        Window(range(5)), Window(range(1, 6), 3), Window(range(2, 7), 3)
    ]  # fmt: skip


def test_stories(stories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    alive: list[weakref.ref[Any]] = []

    def quantizing(quant: QuantSpec | None = None, **rest: Any) -> Llama:
        assert all(ref() is None for ref in alive), "the model before is still in memory"
        asked.append({"quant": quant} | rest)
        rest.pop("calibration", None)
        llama = load(**rest)
        alive.append(weakref.ref(llama.engine.model))
        return llama

    monkeypatch.setattr(quality, "load", quantizing)
    seen: list[tuple[str, int, int]] = []
    result = measure_quality(
        STORIES, ["int8", "int4:32:gptq"], model=stories / "stories260K.bin", device="cpu",
        kv_dtype="int8", calibration="c.txt", progress=lambda *step: seen.append(step),
    )  # fmt: skip
    names = ["fp32", "int8 cache", "int8, int8 cache", "int4:32:gptq, int8 cache"]
    assert [row.name for row in result.rows] == names
    assert [call["quant"] for call in asked] == [
        None, None, QuantSpec("int8"), QuantSpec("int4", 32, "gptq")
    ]  # fmt: skip
    assert [call.get("kv_dtype") for call in asked] == [None, "int8", "int8", "int8"]
    assert [call.get("calibration") for call in asked] == [None, None, None, "c.txt"]
    assert [(what, done) for what, done, total in seen if done == total][1::2] == [
        (name, result.tokens) for name in ("full precision", *names[1:])
    ]
    full, cache = result.rows[:2]
    assert (full.change, full.change_error, full.divergence, full.agreement) == (0, 0, 0, 1)
    assert 2 < full.perplexity < 8
    assert 0 < cache.divergence < 0.01
    assert cache.change == pytest.approx(100 * (cache.perplexity / full.perplexity - 1))
    assert 0 < cache.change_error < 2


def test_a_document_is_bos_tokens_and_end(stories: Path) -> None:
    llama = load(stories / "stories260K.bin", device="cpu")
    ids = llama.tokenizer.encode(STORIES[0])
    windows = [Window([*ids, 1])]  # llama2.c ends a text with the BOS of the next
    losses = score_reference(llama.engine, windows).scores.losses
    found = measure_quality(STORIES[:1], model=stories / "stories260K.bin", device="cpu")
    assert (found.tokens, found.windows, found.context) == (len(ids), 1, 512)
    assert found.rows[0].perplexity == pytest.approx(losses.mean().exp().item())


def test_damaged_weights_are_one_line(monkeypatch: pytest.MonkeyPatch, stories: Path) -> None:
    def damaged(**keywords: Any) -> Llama:
        llama = load(**keywords)
        llama.engine.model.weights.norm.fill_(math.nan)
        return llama

    monkeypatch.setattr(quality, "load", damaged)
    with pytest.raises(RequestError, match="logits that are no numbers"):
        measure_quality(STORIES, model=stories / "stories260K.bin", device="cpu")


def test_quantized_stories(stories: Path, tmp_path: Path) -> None:
    calibration = tmp_path / "other.txt"
    calibration.write_text("Ben and Mia went to the park. They saw a big dog and ran home. " * 40)
    quants = ["int8", "int4:32", "int4:32:gptq", "int4:32+head"]
    result = measure_quality(
        STORIES, quants, model=stories / "stories260K.bin", device="cpu", calibration=calibration
    )
    full, int8, rtn, gptq, head = result.rows
    assert 0 < int8.divergence < rtn.divergence / 20
    assert 0 < gptq.divergence < 0.5
    assert gptq.divergence != rtn.divergence
    assert int8.agreement > 0.95
    assert head.weight_bytes < rtn.weight_bytes < full.weight_bytes
    assert int8.weight_bytes < full.weight_bytes / 2
    assert (full.left_dense, int8.left_dense) == (None, None)
    assert "matrices stay dense (w_13: 172 rows are no multiple of 8; w_2:" in str(rtn.left_dense)

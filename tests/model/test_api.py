"""The Python API: streams in any order, threads, stop strings, what a caller may get wrong."""

import gc
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from llama2gpu.api import Llama, load
from llama2gpu.backends import choose_backend
from llama2gpu.build import build_model
from llama2gpu.checkpoints import RandomCheckpoint
from llama2gpu.config import Config
from llama2gpu.engine import Engine
from llama2gpu.errors import RequestError
from llama2gpu.quant import QuantSpec
from llama2gpu.tokenizer import Token, Tokenizer

CONFIG = Config(dim=32, hidden=48, layers=2, heads=4, kv_heads=2, head_dim=8, vocab=59, context=80)


class Letters(Tokenizer):
    """Token 0 is BOS; token i is the i-th printable character from 'A'."""

    vocab, bos_id, eos_ids, format, leading = CONFIG.vocab, 0, (), "letters", 0

    def _encode(self, text: str) -> list[int]:
        return [ord(letter) - 64 for letter in text]

    def _token(self, id: int) -> Token:
        return Token(chr(64 + id).encode()) if id else Token(b"", control=True)

    def _controls(self) -> dict[str, int]:
        return {}


def make() -> Llama:
    checkpoint = RandomCheckpoint(CONFIG, torch.float32)
    engine = Engine(build_model(checkpoint, choose_backend("torch", "cpu")))
    return Llama(checkpoint, Letters(), engine)


@pytest.fixture
def llama() -> Llama:
    return make()


def test_a_context_past_the_models_own_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    llama = load("stories", context=600, device="cpu")
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("llama2gpu", logging.WARNING)
    assert "a context of 600 was asked for, but 'stories' has one of 384" in record.getMessage()
    answer = llama.generate([1] + [300] * 500, temperature=0, max_tokens=200, ignore_eos=True)
    assert (len(answer.tokens), answer.stop_reason) == (100, "context")
    caplog.clear()
    load("stories", context=384, device="cpu")
    stretched = load("stories", context=600, rope_scaling="yarn:2", device="cpu")
    assert (stretched.checkpoint.config.context, stretched.engine.model.context) == (768, 600)
    with caplog.at_level(logging.ERROR, "llama2gpu"):
        load("stories", context=600, device="cpu")
    assert not caplog.records


@pytest.mark.parametrize("context", [-1, 0, 2**30 + 1, 10**30])
def test_contexts_that_none_can_have(context: int) -> None:
    with pytest.raises(RequestError, match="give 1 to 1073741824; the model has 384"):
        load("stories", context=context, device="cpu")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"rope_scaling": "dynamic:2"}, "give TYPE:FACTOR"),
        ({"rope_scaling": 4}, "give TYPE:FACTOR"),
        ({"quant": None}, "quant is None: give text such as 'int4'"),
        ({"quant": 4}, "quant is 4: give text"),
        ({"quant": "int2"}, "int2"),
        ({"calibration": "text"}, "a calibration text is for gptq and awq"),
        ({"quant": "int4", "calibration": "text"}, "a calibration text is for gptq and awq"),
        ({"quant": QuantSpec("int8"), "calibration": "text"}, "a calibration text is for"),
    ],
    ids=str,
)
def test_quantizations_that_make_no_sense(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        load("/nonexistent", device="cpu", **asked)
    assert "\n" not in str(caught.value)


def test_streams_in_any_order(llama: Llama) -> None:
    alone = [make().generate(p, seed=3, max_tokens=12).text for p in ("AB", "Q")]
    first, second = (llama.stream(p, seed=3, max_tokens=12) for p in ("AB", "Q"))
    pieces = [next(first), next(second), next(second), next(first)]
    assert pieces[0] + pieces[3] + "".join(first) == alone[0]
    assert pieces[1] + pieces[2] + "".join(second) == alone[1]


def test_who_leaves_is_cancelled(llama: Llama) -> None:
    left = llama.stream("AB", max_tokens=70)
    next(left)
    del left
    gc.collect()
    llama.generate("Q", max_tokens=2)
    assert not llama.engine.busy
    assert llama.engine.cache.free_pages == llama.engine.cache.pages


def test_threads_share_one_model(llama: Llama) -> None:
    wanted = [make().generate("AB", seed=i, max_tokens=20).text for i in range(6)]
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda i: llama.generate("AB", seed=i, max_tokens=20).text, range(6))
        assert list(answers) == wanted


def test_stop_string_at_the_bound(llama: Llama) -> None:
    text = llama.generate("AB", temperature=0, max_tokens=5).text
    answer = llama.generate("AB", temperature=0, max_tokens=5, stop=text[-2:])
    assert (answer.stop_reason, answer.text) == ("stop", text[: text.index(text[-2:])])


def test_one_bad_prompt_of_many_queues_nothing(llama: Llama) -> None:
    with pytest.raises(RequestError):
        llama.generate_many(["AB", [1] * 200])
    assert not llama.engine.busy


def test_bytes_are_no_prompt(llama: Llama) -> None:
    with pytest.raises(RequestError, match="bytes"):
        llama.generate(b"AB")


def test_a_completion_does_not_change_later(llama: Llama) -> None:
    stream = llama.stream("AB", max_tokens=6, logprobs=1)
    next(stream)
    early = stream.completion
    stream.finish()
    assert len(early.logprobs) == len(early.tokens) == 1


def test_a_failed_answer_raises(llama: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(pages: int) -> None:
        raise RequestError("no memory")

    monkeypatch.setattr(llama.engine.cache, "grow", none)
    with pytest.raises(RequestError, match="no memory"):
        llama.generate("AB")


def test_users_default_type_does_not_matter(llama: Llama) -> None:
    wanted = llama.generate("AB", seed=1, max_tokens=5, logit_bias={3: 1.0}).text
    torch.set_default_dtype(torch.float64)
    try:
        assert make().generate("AB", seed=1, max_tokens=5, logit_bias={3: 1.0}).text == wanted
    finally:
        torch.set_default_dtype(torch.float32)


def test_nothing_of_pytorch_is_left_changed(llama: Llama) -> None:
    before = torch._C._get_mkldnn_enabled()
    checkpoint = RandomCheckpoint(CONFIG, torch.float32)
    model = build_model(checkpoint, choose_backend("torch", "cpu"), "bf16")
    Llama(checkpoint, Letters(), Engine(model)).generate("AB", max_tokens=3)
    assert torch._C._get_mkldnn_enabled() == before
    assert torch.is_grad_enabled()

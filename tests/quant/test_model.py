"""Quantized models: the same tokens in every way, and calibration that is worth its while."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import llama2gpu
from llama2gpu import Llama, quantizer
from llama2gpu.backends import choose_backend
from llama2gpu.batch import Span, build_batch
from llama2gpu.build import build_model
from llama2gpu.cache import KVCache
from llama2gpu.calibrate import TOKENS, WINDOW, CalibratedQuantizer, Moments, calibration_windows
from llama2gpu.checkpoints import open_checkpoint
from llama2gpu.checkpoints.save import save_huggingface
from llama2gpu.errors import RequestError
from llama2gpu.model import Model
from llama2gpu.open_quantizer import open_quantizer
from llama2gpu.quant import Dense, QuantSpec, Weight, quantize, weighted_error
from llama2gpu.quant.spec import CALIBRATED, parse_spec
from llama2gpu.tokenizer import load_tokenizer
from llama2gpu.weights import LayerWeights
from tests.model.test_golden import GREEDY
from tests.quant.models import CONFIG, canonical, quantizer_of, random_model

#: Of stories260K: every method, with zero points and without, the head and its embedding too.
SPECS = (
    "int8",
    "int8:32+head",
    "int4",
    "int4:32+zeros+head",
    "int4:64:hqq",
    "int4:32:hqq+zeros",
    "int4:64:gptq+zeros",
    "int4:32:gptq+head",
    "int4:64:awq",
    "int4:32:awq+zeros+head",
)
WAYS: list[dict[str, Any]] = [
    {"kv_cache": False},
    {"prefill": "sequential"},
    {"ops": {"linear": "numpy"}},
    {"ops": {"attention": "numpy", "gate_up": "numpy", "logits": "numpy"}},
    {"backend": "numpy", "ops": {"project_add": "torch", "qkv": "torch", "embed": "torch"}},
]
PROMPTS = ["", "Lily and Tom", "The dog was " * 20]
COUNT = 40


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibration text of some windows."""
    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    path.write_text("\n".join([GREEDY] * 12))
    return path


def opened(stories: Path, asked: str, text: Path, **how: Any) -> Llama:
    if "gptq" in asked or "awq" in asked:
        how["calibration"] = text
    model, words = stories / "stories260K.bin", stories / "tok512.bin"
    how = {"backend": "torch", "device": "cpu", "quant": asked, **how}
    return llama2gpu.load(model, tokenizer=words, **how)


def tell(llama: Llama, prompts: Sequence[str] = PROMPTS) -> list[list[int]]:
    """Greedy tokens of each prompt, alone."""
    return [llama.generate(p, temperature=0, max_tokens=COUNT).tokens for p in prompts]


def saved(stories: Path, asked: str, text: Path, folder: Path) -> Path:
    """The same quantization in a folder."""
    source = open_checkpoint(stories / "stories260K.bin")
    server = choose_backend("torch", "cpu")
    words = load_tokenizer(stories / "tok512.bin", vocab=source.config.vocab)
    spec = parse_spec(asked)
    made = open_quantizer(source, spec, server, words, text if spec.method in CALIBRATED else None)
    save_huggingface(source, folder, made, tokenizer=words)
    return folder


@pytest.mark.parametrize("asked", SPECS)
def test_the_same_tokens(stories: Path, text: Path, asked: str, tmp_path: Path) -> None:
    """On load and saved, alone and batched, in PyTorch and in NumPy."""
    llama = opened(stories, asked, text)
    told = tell(llama)
    together = llama.generate_many(PROMPTS, temperature=0, max_tokens=COUNT)
    assert [answer.tokens for answer in together] == told
    folder = saved(stories, asked, text, tmp_path / "out")
    for backend in ("torch", "numpy"):
        loaded = llama2gpu.load(folder, backend=backend, device="cpu")
        assert loaded.dtype == "fp32"
        assert tell(loaded) == told


@pytest.mark.parametrize("how", WAYS, ids=str)
@pytest.mark.parametrize("asked", ["int8:32+head", "int4:32+zeros+head", "int4:64:hqq"])
def test_in_any_way(stories: Path, text: Path, asked: str, how: dict[str, Any]) -> None:
    told = tell(opened(stories, asked, text))
    assert tell(opened(stories, asked, text, **how)) == told


def test_int8_tells_the_unquantized_story(stories: Path, text: Path) -> None:
    plain = opened(stories, "none", text).generate("", temperature=0, max_tokens=COUNT)
    assert tell(opened(stories, "int8", text), [""]) == [plain.tokens]


class Rival(CalibratedQuantizer):
    """Rounds each matrix to nearest too, as it was before awq scaled it; notes both errors."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.pairs: dict[str, tuple[float, float]] = {}
        self.seen: Moments = {}

    def _scaled(self, layer: LayerWeights, moments: Moments) -> tuple[LayerWeights, Moments]:
        self.seen = dict(moments)
        return super()._scaled(layer, moments)

    def matrix(self, name: str, weight: Weight, moments: torch.Tensor | None) -> Weight:
        found = super().matrix(name, weight, moments)
        part = name.rpartition(".")[2]
        group = self.group(part, weight.shape[1])
        assert isinstance(weight, Dense)
        assert moments is not None
        before = self.seen.get(part)
        before = moments if before is None else before
        scale = (before.diagonal() / moments.diagonal()).sqrt()
        original = weight.data.float() / scale
        rival = quantize(original, QuantSpec("int4", group or 128), group)
        error = weighted_error(weight.data, found, moments)
        self.pairs[name] = (error, weighted_error(original, rival, before))
        return found


@pytest.mark.parametrize("asked", ["int4:32:gptq", "int4:gptq", "int4:32:awq", "int4:64:awq"])
def test_calibration_is_no_worse_than_rtn(asked: str, tmp_path: Path) -> None:
    source = random_model(tmp_path / "in")
    rival = quantizer_of(asked, CONFIG, kind=Rival)
    assert isinstance(rival, Rival)
    canonical(source, rival)
    assert len(rival.pairs) == 8
    for name, (error, plain) in rival.pairs.items():
        assert 0 < error <= plain, name


@pytest.mark.parametrize("asked", ["int4:32:awq", "int4:32:gptq+zeros"])
def test_calibrated_on_the_reference_too(asked: str, tmp_path: Path) -> None:
    """What another backend sees differs in its last digits, so hardly a code does."""
    source = random_model(tmp_path / "in")
    one, other = (
        canonical(source, quantizer_of(asked, CONFIG, backend=b)) for b in ("torch", "numpy")
    )
    for weight, same in zip(one.values(), other.values(), strict=True):
        apart = weight.dequantize(torch.float32) - same.dequantize(torch.float32)
        assert float(apart.norm() / weight.dequantize(torch.float32).norm()) < 0.05


@pytest.mark.parametrize("scaled", ["int4:32:awq", "int4:32:awq+zeros+head"])
def test_scaling_changes_no_meaning(
    scaled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """awq without the rounding is the model that it was."""
    source, server = random_model(tmp_path / "in"), choose_backend("torch", "cpu")
    monkeypatch.setattr(quantizer, "quantize", lambda matrix, *_: Dense(matrix))
    plain = build_model(source, server)
    other = build_model(source, server, quantizer=quantizer_of(scaled, CONFIG))
    for layer, same in zip(plain.weights.layers, other.weights.layers, strict=True):
        assert float((layer.attention_norm - same.attention_norm).abs().max()) > 0.01
    torch.testing.assert_close(logits(other), logits(plain), rtol=1e-3, atol=1e-3)


def logits(model: Model) -> torch.Tensor:
    """Those of 20 tokens."""
    cache = KVCache(model.config, 2, torch.float32, torch.device("cpu"))
    batch = build_batch([Span(range(2), 0, 20)], cache.page, torch.device("cpu"))
    return model.logits(model.forward(torch.arange(20), batch, cache.layers))


def test_windows() -> None:
    assert calibration_windows(range(70), 32) == [[*range(32)], [*range(32, 64)]]
    many = calibration_windows(range(3 * TOKENS), 4 * WINDOW)
    assert (len(many), len(many[0])) == (TOKENS // WINDOW, WINDOW)
    with pytest.raises(RequestError, match="31 tokens, fewer than the 32"):
        calibration_windows(range(31), 32)

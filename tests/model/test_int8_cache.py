"""The int8 key-value cache in the engine: its size, its growth, and the same tokens in any way."""

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import llama2gpu
from llama2gpu import Llama
from llama2gpu.backends import choose_backend
from llama2gpu.build import build_model
from llama2gpu.cache import KVCache
from llama2gpu.checkpoints import RandomCheckpoint
from llama2gpu.cli.main import program
from llama2gpu.config import Config
from llama2gpu.engine import Engine
from llama2gpu.errors import RequestError
from llama2gpu.request import Request
from llama2gpu.sampling import SamplingParams

CPU = torch.device("cpu")
CONFIG = Config(dim=48, hidden=60, layers=2, heads=6, kv_heads=2, head_dim=8, vocab=61, context=96)
WAYS: list[dict[str, Any]] = [{}, {"kv_cache": False}, {"prefill": "sequential"}]
PROMPTS = ["", "Lily and Tom", "The dog was " * 20]


def opened(stories: Path, backend: str, **how: Any) -> Llama:
    model, words = stories / "stories260K.bin", stories / "tok512.bin"
    how = {"kv_dtype": "int8", **how}
    return llama2gpu.load(model, tokenizer=words, backend=backend, device="cpu", **how)


@pytest.fixture(scope="module")
def told(stories: Path) -> list[list[int]]:
    """Tokens of each prompt alone, prefilled at once, on the torch backend."""
    llama = opened(stories, "torch")
    return [llama.generate(prompt, temperature=0, max_tokens=90).tokens for prompt in PROMPTS]


@pytest.mark.parametrize("how", WAYS, ids=str)
@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_the_same_tokens_in_any_way(
    stories: Path, told: list[list[int]], backend: str, how: dict[str, Any]
) -> None:
    count = 40 if how == {"kv_cache": False} else 90
    llama = opened(stories, backend, **how)
    together = llama.generate_many(PROMPTS, temperature=0, max_tokens=count)
    assert [answer.tokens for answer in together] == [tokens[:count] for tokens in told]


@pytest.mark.parametrize("lent", ["write_kv", "attend", "qkv", "attention"])
@pytest.mark.parametrize(("primary", "lender"), [("torch", "numpy"), ("numpy", "torch")])
def test_borrowed(
    stories: Path, told: list[list[int]], primary: str, lender: str, lent: str
) -> None:
    answer = opened(stories, primary, ops={lent: lender}).generate("", temperature=0, max_tokens=60)
    assert answer.tokens == told[0][:60]


def test_it_tells_nearly_the_unquantized_story(stories: Path, told: list[list[int]]) -> None:
    llama = opened(stories, "torch", kv_dtype="auto")
    wanted = llama.generate("", temperature=0, max_tokens=90).tokens
    assert told[0] == wanted


def parts(cache: KVCache) -> list[list[torch.Tensor]]:
    """Of each layer k, v and their scales."""
    return [[part for part in layer if part is not None] for layer in cache.layers]


def filled(stories: Path, chunk: int) -> list[list[torch.Tensor]]:
    """The cache of each layer after a prompt of 150 tokens, taken `chunk` at a time."""
    model = opened(stories, "torch").engine.model
    engine = Engine(model, chunk=chunk, page=16, kv_dtype=torch.int8)
    ids = torch.randint(512, (150,), generator=torch.Generator().manual_seed(3)).tolist()
    engine.add(Request(ids, SamplingParams(temperature=0, max_tokens=1), frozenset()))
    while engine.busy:
        engine.step()
    return parts(engine.cache)


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_the_same_bytes_however_tokens_arrive(stories: Path, chunk: int) -> None:
    """But where float32, which rounds apart by chunk, crosses a tie: a code then moves by one.

    What such a code changes reaches the layers above it.
    """
    layers = zip(filled(stories, 512), filled(stories, chunk), strict=True)
    for i, (one, other) in enumerate(layers):
        share, wide = (1e-3, 1e-5) if i == 0 else (1e-2, 1e-2)
        k, v, *scales = zip(one, other, strict=True)
        for a, b in (k, v):
            apart = (a.int() - b.int()).abs()
            assert apart.max() <= 1
            assert apart.count_nonzero() <= share * apart.numel()
        for scale, same in scales:
            torch.testing.assert_close(scale, same, rtol=wide, atol=0)


def test_half_the_memory_of_16_bits() -> None:
    config = Config(
        dim=256, hidden=64, layers=3, heads=2, kv_heads=2, head_dim=128, vocab=9, context=9
    )
    small, large = (KVCache(config, 5, dtype, CPU) for dtype in (torch.int8, torch.float16))
    assert small.token_bytes == 3 * 2 * 2 * (128 + 4)
    assert large.token_bytes == 3 * 2 * 2 * 256
    for cache in (small, large):
        assert cache.nbytes == cache.token_bytes * 5 * cache.page
        assert cache.nbytes == sum(part.nbytes for layer in parts(cache) for part in layer)


def test_growth_keeps_codes_and_scales() -> None:
    cache = KVCache(CONFIG, 2, torch.int8, CPU, page=4)
    before = parts(cache)
    for i, part in enumerate(x for layer in before for x in layer):
        part.fill_(i + 1)
    cache.grow(3)
    for layer, olds in zip(parts(cache), before, strict=True):
        assert len(olds) == 4
        for part, old in zip(layer, olds, strict=True):
            assert part.dtype == old.dtype
            assert torch.equal(part[:2], old)
            assert not part[2:].any()


def test_what_can_not_be_had_is_named_with_its_scales() -> None:
    cache = KVCache(CONFIG, 0, torch.int8, CPU)
    gib = (1 << 45) * 64 * cache.token_bytes / 2**30
    with pytest.raises(RequestError, match=f"{gib:.1f} GiB"):
        cache.grow(1 << 45)
    assert cache.pages == 0


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_in_16_bits(backend: str, dtype: str) -> None:
    model = build_model(
        RandomCheckpoint(CONFIG, torch.float32), choose_backend(backend, "cpu"), dtype
    )
    engine = Engine(model, chunk=5, kv_dtype=torch.int8)
    asked = SamplingParams(temperature=0, max_tokens=5)
    sequences = [engine.add(Request(list(range(1, n)), asked, frozenset())) for n in (4, 20)]
    while engine.busy:
        engine.step()
    assert [(len(s.output), s.error) for s in sequences] == [(5, None)] * 2


def test_unknown_type() -> None:
    with pytest.raises(RequestError, match="kv_dtype is 'int4': choose auto, int8"):
        llama2gpu.load(kv_dtype="int4")


def test_on_the_command_line(stories: Path) -> None:
    model, words = str(stories / "stories260K.bin"), str(stories / "tok512.bin")
    asked = ["run", "-m", model, "--tokenizer", words, "-t", "0", "-n", "20", "-q", "Lily and Tom"]
    text = opened(stories, "torch").generate("Lily and Tom", temperature=0, max_tokens=20).text
    done = CliRunner().invoke(program, [*asked, "--kv-dtype", "int8", "--device", "cpu"])
    assert (done.exit_code, done.stdout) == (0, f"Lily and Tom{text}\n")

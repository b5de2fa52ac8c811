"""Small models to quantize, quantizers of every method for them, and what became of them."""

from collections.abc import Callable
from pathlib import Path

import torch

from llama2gpu.backends import choose_backend
from llama2gpu.calibrate import CalibratedQuantizer
from llama2gpu.checkpoints import Checkpoint, open_checkpoint
from llama2gpu.checkpoints.weights import Quantizer, load_weights
from llama2gpu.config import Config
from llama2gpu.quant import Weight
from llama2gpu.quant.spec import CALIBRATED, QuantSpec, parse_spec
from llama2gpu.quantizer import Outcome, RoundingQuantizer
from tests.checkpoints.writers import random_tensors, write_huggingface

#: w2's 160 columns are in groups of 32, the others' 128 in any.
CONFIG = Config(
    dim=128, hidden=160, layers=2, heads=4, kv_heads=2, head_dim=32, vocab=96, context=64
)
TIED = Config(
    dim=128, hidden=160, layers=2, heads=4, kv_heads=4, head_dim=32, vocab=96, context=64, tied=True
)

SPECS = (
    "int8",
    "int8:32+head",
    "int4",
    "int4:32+zeros+head",
    "int4:64:hqq",
    "int4:32:hqq+zeros",
    "int4:gptq",
    "int4:32:gptq+zeros+head",
    "int4:64:awq",
    "int4:32:awq+head",
)


def random_model(folder: Path, config: Config = CONFIG) -> Checkpoint:
    """A random model as a Hugging Face folder, its columns of very different size."""
    tensors = random_tensors(config)
    for name, tensor in tensors.items():
        if tensor.dim() == 2 and name != "embed":
            generator = torch.Generator().manual_seed(tensor.shape[1])
            sizes = torch.randn(tensor.shape[1], generator=generator).mul(0.7).exp()
            tensors[name] = tensor * 3 * sizes
    return open_checkpoint(write_huggingface(folder, config, tensors))


def quantizer_of(
    asked: str,
    config: Config,
    report: Callable[[Outcome], None] = lambda outcome: None,
    backend: str = "torch",
    kind: type[CalibratedQuantizer] = CalibratedQuantizer,
) -> Quantizer:
    """A quantizer as `parse_spec` reads it; calibrated ones see random tokens."""
    spec: QuantSpec = parse_spec(asked)
    if spec.method not in CALIBRATED:
        return RoundingQuantizer(spec, config, report, errors=True)
    ids = torch.randint(config.vocab, (12, 48), generator=torch.Generator().manual_seed(1))
    server = choose_backend(backend, "cpu")
    return kind(spec, config, server, ids.tolist(), report, errors=True)


def canonical(checkpoint: Checkpoint, quantizer: Quantizer | None = None) -> dict[str, Weight]:
    """The canonical matrices in the order in which they are placed."""
    placed: dict[str, Weight] = {}

    def place(weight: Weight, op: str) -> Weight:
        placed[f"{len(placed)} {op}"] = weight
        return weight

    load_weights(checkpoint, checkpoint.dtype, place, quantizer=quantizer)
    return placed


def loaded_norms(checkpoint: Checkpoint, quantizer: Quantizer | None = None) -> torch.Tensor:
    """All norms as a model gets them, one after another."""
    weights = load_weights(checkpoint, checkpoint.dtype, lambda w, op: w, quantizer=quantizer)
    pairs = [(layer.attention_norm, layer.ffn_norm) for layer in weights.layers]
    return torch.cat([norm for pair in pairs for norm in pair] + [weights.norm])


def assert_equal(found: dict[str, Weight], wanted: dict[str, Weight]) -> None:
    """The same kinds of weights, the same bytes."""
    by_op = [
        sorted(w, key=lambda name: (name.split()[1], int(name.split()[0]))) for w in (found, wanted)
    ]
    for name, other in zip(*by_op, strict=True):
        assert type(found[name]) is type(wanted[other])
        for part, value in vars(found[name]).items():
            same = getattr(wanted[other], part)
            assert (value is None) == (same is None), (name, part)
            assert value is None or (value.dtype == same.dtype and torch.equal(value, same))

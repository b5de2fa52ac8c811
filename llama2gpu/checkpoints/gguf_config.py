"""The sizes and constants of a GGUF file's model."""

import math
from dataclasses import replace
from typing import Any, NoReturn

import torch

from llama2gpu.checkpoints.fields import Fields, config_from
from llama2gpu.checkpoints.gguf_header import Array, Header
from llama2gpu.checkpoints.gguf_names import ARCHITECTURE, NAMES, ROPE_FREQS, General, Model
from llama2gpu.config import LIMITS, Config, RopeScaling
from llama2gpu.errors import CheckpointError, UnsupportedModelError

#: Llama 3's constants of rotary frequencies: what a table of divisors is held against.
_LOW, _HIGH, _ORIGINAL = 1.0, 4.0, 8192


def fields_of(header: Header) -> Fields:
    """The values of a file that are no lists."""
    plain = {key: value for key, value in header.values.items() if not isinstance(value, Array)}
    return Fields(str(header.path), plain)


def read_config(header: Header) -> Config:
    """The model of a file.

    Raises `UnsupportedModelError` for other architectures, experts, sizes that differ by layer, a
    sliding window, files without a model, and rotary frequencies of an unknown kind.
    """
    fields = fields_of(header)
    _check_supported(header, fields)
    dim, heads = fields.integer(Model.DIM), fields.integer(Model.HEADS)
    head_dim = fields.integer(Model.KEY_LENGTH, dim // max(heads, 1))
    for key in (Model.VALUE_LENGTH, Model.ROPE_DIM):
        if (found := fields.integer(key, head_dim)) != head_dim:
            _refuse(header, f"{key} {found} with heads of {head_dim}", "give a plain Llama")
    context = fields.integer(Model.CONTEXT)
    if 0 < (window := fields.integer(Model.SLIDING_WINDOW, 0)) < context:
        _refuse(header, f"a sliding window of {window} in {context}", "give a later version")
    embed = header.tensors[NAMES("embed")].shape
    sizes: dict[str, Any] = {
        "dim": dim,
        "hidden": fields.integer(Model.HIDDEN),
        "layers": fields.integer(Model.LAYERS),
        "heads": heads,
        "kv_heads": fields.integer(Model.KV_HEADS, heads),
        "head_dim": head_dim,
        "vocab": embed[0] if len(embed) == 2 else 0,
        "context": context,
        "norm_eps": fields.number(Model.NORM_EPS),
        "rope_theta": fields.number(Model.ROPE_THETA, 10000.0),
        "tied": NAMES("output") not in header.tensors,
    }
    config = config_from(header.path, **sizes)
    scaling = _scaling(header, fields, config)
    return config_from(header.path, **sizes, rope_scaling=scaling)


def _check_supported(header: Header, fields: Fields) -> None:
    named = fields.text(General.ARCHITECTURE, "none")
    if named != ARCHITECTURE:
        _refuse(header, f"architecture {named[:40]!r}", f"{ARCHITECTURE!r} is supported")
    for key in (Model.HIDDEN, Model.HEADS, Model.KV_HEADS):
        if isinstance(header.values.get(key), Array):
            _refuse(header, f"a {key} for each layer", "give a plain Llama")
    if experts := fields.integer(Model.EXPERTS, 0):
        _refuse(header, f"a mixture of {experts} experts", "give a plain Llama")
    if bias := next((name for name in header.tensors if name.endswith(".bias")), None):
        _refuse(header, f"a bias ({bias[:80]})", "give a model without biases")
    if NAMES("embed") not in header.tensors:
        what = "a vocabulary alone" if not header.tensors else f"no {NAMES('embed')}"
        raise UnsupportedModelError(f"{header.path} holds {what}: give the file of the whole model")


def _refuse(header: Header, what: str, remedy: str) -> NoReturn:
    raise UnsupportedModelError(f"{header.path}: {what} is not supported: {remedy}")


def _scaling(header: Header, fields: Fields, config: Config) -> RopeScaling | None:
    kind = fields.text(Model.ROPE_TYPE, "linear")
    factor = fields.number(Model.ROPE_FACTOR, fields.number(Model.ROPE_LINEAR, 0.0)) or 1.0
    if factor < 0:
        raise CheckpointError(f"{header.path}: {Model.ROPE_FACTOR} is {factor}, below 0")
    if ROPE_FREQS in header.tensors and (found := _llama3(header, config)):
        if kind == "yarn" or (kind == "linear" and factor != 1.0):
            _refuse(header, f"{kind} scaling with {ROPE_FREQS}", "give a model with one of them")
        return found
    if kind == "yarn":
        return _yarn(header, fields, factor, config.context)
    if kind == "linear":
        return None if factor == 1.0 else RopeScaling("linear", factor)
    if kind != "none":
        _refuse(header, f"RoPE scaling {kind[:40]!r}", "none, linear, llama3 and yarn are")
    return None


def _yarn(header: Header, fields: Fields, factor: float, context: int) -> RopeScaling:
    original = fields.integer(Model.ROPE_ORIGINAL, context)
    if not 0 < original <= LIMITS["context"]:
        raise CheckpointError(f"{header.path}: {Model.ROPE_ORIGINAL} is {original}")
    attention = fields.optional_number(Model.ROPE_ATTENTION_ALL)
    times = fields.number(Model.ROPE_ATTENTION, 1.0)
    if attention is None and times != 1.0:
        attention = times * (0.1 * math.log(max(factor, 1.0)) + 1.0)
    fast = fields.number(Model.ROPE_BETA_FAST, 32.0)
    slow = fields.number(Model.ROPE_BETA_SLOW, 1.0)
    if min(fast, slow) <= 0:
        raise CheckpointError(f"{header.path}: YaRN's betas are {fast} and {slow}, not above 0")
    return RopeScaling(
        "yarn",
        factor,
        original_context=original,
        attention_factor=attention,
        beta_fast=fast,
        beta_slow=slow,
    )


def _llama3(header: Header, config: Config) -> RopeScaling | None:
    """The scaling whose divisors a file holds; None where they are all 1.

    The divisors determine the other constants only up to what they are multiplied with together,
    so a Llama 3's are assumed, and held against the divisors.
    """
    table = header.tensors[ROPE_FREQS]
    if table.kind.name != "F32" or table.shape != (config.head_dim // 2,):
        raise CheckpointError(
            f"{header.path}: {ROPE_FREQS} is {table.kind.name} {list(table.shape)}, but must be "
            f"F32 {[config.head_dim // 2]}: it is damaged, download it again"
        )
    divisors = table.data.clone().view(torch.float32).double()
    if bool((divisors == 1).all()):
        return None
    original = fields_of(header).integer(Model.ROPE_ORIGINAL, _ORIGINAL)
    unscaled = RopeScaling("llama3", 1.0, _LOW, _HIGH, original)
    kept = kept_frequencies(config, unscaled)
    factor = float((1 - kept[-1]) / (1 / divisors[-1] - kept[-1]))
    if 0 < factor < 1e6:
        whole = round(factor)
        scaling = replace(unscaled, factor=whole if abs(factor - whole) < 1e-3 else factor)
        wanted = 1 / ((1 - kept) / scaling.factor + kept)
        if bool(((divisors - wanted).abs() <= 1e-4 * wanted).all()):
            return scaling
    _refuse(header, f"a {ROPE_FREQS} of another kind than Llama 3's", "give a plain Llama")


def kept_frequencies(config: Config, scaling: RopeScaling) -> torch.Tensor:
    """How much of each rotary frequency llama3's scaling keeps, 0 to 1, float64 [head_dim / 2].

    The divisor of a frequency is `1 / ((1 - kept) / factor + kept)`.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    turns = scaling.original_context / (2 * torch.pi * config.rope_theta**exponents)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    return ((turns - low) / (high - low)).clamp(0, 1)

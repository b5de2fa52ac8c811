"""Rotary settings of a Hugging Face `config.json`, and those that a user asks for in their place.

In the file, up to transformers 4: `rope_theta` and `rope_scaling` {`rope_type`, or `type` in the
oldest, …}. From 5: `rope_parameters`, which holds both.
"""

from collections.abc import Callable
from dataclasses import replace

from llama2gpu.checkpoints.fields import Fields
from llama2gpu.config import LIMITS, Config, RopeScaling
from llama2gpu.errors import CheckpointError, RequestError, UnsupportedModelError


def read_rope(config: Fields, context: int) -> tuple[float, RopeScaling | None]:
    """rope_theta, and the scaling where there is one.

    `context` is max_position_embeddings, the default of a scaling's original context.
    Raises `UnsupportedModelError` for types other than default, linear, llama3 and yarn.
    """
    new, old = config.nested("rope_parameters"), config.nested("rope_scaling")
    rope = Fields(f"{config.where}: RoPE", {**old.values, **new.values})
    theta = rope.number("rope_theta", config.number("rope_theta", 10000.0))
    if rope.number("partial_rotary_factor", config.number("partial_rotary_factor", 1.0)) != 1.0:
        raise UnsupportedModelError(f"{config.where}: RoPE on a part of each head is not supported")
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind == "default":
        return theta, None
    if kind not in _READERS:
        raise UnsupportedModelError(
            f"{config.where}: RoPE scaling {kind[:40]!r} is not supported: "
            f"default, {', '.join(_READERS)} are"
        )
    return theta, _READERS[kind](rope, context)


def parse_scaling(text: str) -> tuple[str, float]:
    """Type and factor of a scaling: "yarn:4" is ("yarn", 4.0). Raises `RequestError`."""
    kind, _, factor = str(text).partition(":")
    try:
        number = float(factor)
    except ValueError:
        number = 0.0
    if kind not in _READERS or not 1 <= number < float("inf"):
        raise RequestError(
            f"RoPE scaling {str(text)[:40]!r} is none: give TYPE:FACTOR, yarn:4 say, of a type of "
            f"{', '.join(_READERS)} and a factor from 1"
        )
    return kind, number


def stretched(config: Config, text: str) -> Config:
    """The config with the scaling that `parse_scaling` reads in `text`, in place of its own.

    The original context is the config's, or what its own scaling names as such; the new context is
    that times the factor. What else a type takes is as in a `config.json` that leaves it out, and
    for llama3 Llama 3.1's 1 and 4. Raises `RequestError`.
    """
    kind, factor = parse_scaling(text)
    own, context, most = config.rope_scaling, config.context, LIMITS["context"]
    if own is not None and own.type != "linear":
        context = own.original_context
    if context * factor > most:
        raise RequestError(
            f"RoPE scaling {text[:40]} takes a context of {context} past {most}: give a factor up "
            f"to {most // context}"
        )
    values = {"factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling = _READERS[kind](Fields("RoPE scaling", values), context)
    return replace(config, rope_scaling=scaling, context=int(context * factor))


def _linear(rope: Fields, context: int) -> RopeScaling:
    return RopeScaling("linear", _positive(rope, "factor"))


def _llama3(rope: Fields, context: int) -> RopeScaling:
    low, high = _positive(rope, "low_freq_factor"), _positive(rope, "high_freq_factor")
    if low >= high:
        raise CheckpointError(
            f"{rope.where}: low_freq_factor {low} must lie below {high}, the high"
        )
    return RopeScaling(
        "llama3",
        _positive(rope, "factor"),
        low_freq_factor=low,
        high_freq_factor=high,
        original_context=_original(rope, context),
    )


def _yarn(rope: Fields, context: int) -> RopeScaling:
    original = _original(rope, context)
    return RopeScaling(
        "yarn",
        _positive(rope, "factor", context / original),
        original_context=original,
        attention_factor=rope.optional_number("attention_factor"),
        beta_fast=_positive(rope, "beta_fast", 32.0),
        beta_slow=_positive(rope, "beta_slow", 1.0),
        mscale=rope.optional_number("mscale"),
        mscale_all_dim=rope.optional_number("mscale_all_dim"),
        truncate=rope.flag("truncate", True),
    )


def _original(rope: Fields, context: int) -> int:
    original = rope.integer("original_max_position_embeddings", context)
    if not 0 < original <= LIMITS["context"]:
        raise CheckpointError(f"{rope.where}: an original context of {original} is none")
    return original


def _positive(rope: Fields, key: str, default: float | None = None) -> float:
    value = rope.number(key, default)
    if value <= 0:
        raise CheckpointError(f"{rope.where}: {key} is {value}, but it must be positive")
    return value


_READERS: dict[str, Callable[[Fields, int], RopeScaling]] = {
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}

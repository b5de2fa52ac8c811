"""The one RoPE table that every backend and every reference reads.

The expressions and their order are those of Hugging Face's `modeling_rope_utils`: at position
120,000 another order of the same float32 operations is 0.09 away.
"""

import math
from dataclasses import replace

import torch

from llama2gpu.config import Config, RopeScaling


def rope_table(config: Config, context: int, start: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines for positions `start` to context − 1.

    Returns two float32 tensors `[context − start, head_dim / 2]`; column i turns the pair
    (2i, 2i + 1).
    Sources: RoFormer (Su et al., 2021); Llama 3.1's and YaRN's (Peng et al., 2023) frequencies.
    """
    frequencies, scale = _frequencies(config)
    angles = torch.arange(start, context).float()[:, None] * frequencies
    return angles.cos() * scale, angles.sin() * scale


def frequency_divisors(config: Config) -> torch.Tensor:
    """What scaling divides each frequency by, float32 `[head_dim / 2]`; ones without scaling."""
    plain, _ = _frequencies(replace(config, rope_scaling=None))
    return plain / _frequencies(config)[0]


def _frequencies(config: Config) -> tuple[torch.Tensor, float]:
    scaling = config.rope_scaling
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    periods = config.rope_theta**exponents
    if scaling is None:
        return 1.0 / periods, 1.0
    if scaling.type == "linear":
        return 1.0 / periods / scaling.factor, 1.0
    if scaling.type == "llama3":
        return _llama3(1.0 / periods, scaling), 1.0
    return _yarn(periods, config, scaling), yarn_scale(scaling)


def _llama3(frequencies: torch.Tensor, s: RopeScaling) -> torch.Tensor:
    wavelengths = 2 * math.pi / frequencies
    longest = s.original_context / s.low_freq_factor
    shortest = s.original_context / s.high_freq_factor
    scaled = torch.where(wavelengths > longest, frequencies / s.factor, frequencies)
    smooth = s.original_context / wavelengths - s.low_freq_factor
    smooth = smooth / (s.high_freq_factor - s.low_freq_factor)
    blended = (1 - smooth) * scaled / s.factor + smooth * scaled
    between = (wavelengths >= shortest) & (wavelengths <= longest)
    return torch.where(between, blended, scaled)


def _yarn(periods: torch.Tensor, config: Config, s: RopeScaling) -> torch.Tensor:
    def column(turns: float) -> float:
        # the column whose pair makes `turns` turns over the original context
        octaves = math.log(s.original_context / (turns * 2 * math.pi))
        return config.head_dim * octaves / (2 * math.log(config.rope_theta))

    low, high = column(s.beta_fast), column(s.beta_slow)
    if s.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.head_dim - 1)
    if low == high:
        high += 0.001
    columns = torch.arange(config.head_dim // 2, dtype=torch.float32)
    keep = 1 - torch.clamp((columns - low) / (high - low), 0, 1)
    return 1.0 / (s.factor * periods) * (1 - keep) + 1.0 / periods * keep


def yarn_scale(s: RopeScaling) -> float:
    """What YaRN multiplies cosines and sines by."""

    def mscale(weight: float) -> float:
        return 1.0 if s.factor <= 1 else 0.1 * weight * math.log(s.factor) + 1.0

    if s.attention_factor is not None:
        return s.attention_factor
    if s.mscale and s.mscale_all_dim:
        return mscale(s.mscale) / mscale(s.mscale_all_dim)
    return mscale(1.0)

"""What sampling means, in torch: the definition that every backend's `sample` reproduces."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from llama2gpu.ops.noise import uniform_words


@dataclass(frozen=True)
class SampleParams:
    """How to choose the next token of each of S sequences; tensors lie on the logits' device.

    temperature, top_p, min_p: float32 [S]; a temperature of 0 is greedy.
    top_k: int64 [S]; 0 keeps all.
    seed, draw: int64 [S]; `draw` counts the tokens that a sequence has drawn so far.
    bias: float32 [S, vocab], added to the logits, or None.
    repetition, presence, frequency: float32 [S]; read only where `generated` is given.
    generated: int32 [S, vocab], how often each token was generated, or None without penalties.
    prompted: bool [S, vocab], which tokens the prompt holds, or None without penalties.
    greedy: every temperature is 0, truncated: some row has a top-k, top-p or min-p. Both are known
        on the host, so that a step computes no more than it needs.
    """

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    seed: torch.Tensor
    draw: torch.Tensor
    repetition: torch.Tensor
    presence: torch.Tensor
    frequency: torch.Tensor
    bias: torch.Tensor | None = None
    generated: torch.Tensor | None = None
    prompted: torch.Tensor | None = None
    greedy: bool = False
    truncated: bool = True


class Drawn(NamedTuple):
    """Next tokens int64 [S], their log-probabilities float32 [S], and all logits [S, vocab]."""

    tokens: torch.Tensor
    logprobs: torch.Tensor
    logits: torch.Tensor


def sample(logits: torch.Tensor, params: SampleParams) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens int64 [S] and their log-probabilities float32 [S], from float32 logits [S, vocab].

    In this order: bias, penalties, temperature, top-k, top-p, min-p, Gumbel noise, the largest,
    ties by lowest index. Tokens of equal probability are kept or dropped together. The
    log-probability is the model's own: of the logits as they came in.
    Sources: Keskar et al. 2019 (repetition penalty), OpenAI's API (presence, frequency),
    Holtzman et al. 2020 (top-p), Nguyen et al. 2024 (min-p), Maddison et al. 2014 (Gumbel).
    """
    scores = penalize(logits, params)
    if not params.greedy:
        warm = params.temperature[:, None] > 0
        heated = scores / torch.where(warm, params.temperature[:, None], 1.0)
        kept = truncate(heated, params) if params.truncated else heated
        drawn = kept + gumbel(params, logits.shape[1])
        scores = torch.where(warm, drawn, scores)
    tokens = lowest_argmax(scores)
    return tokens, log_probability(logits, tokens)


def log_probability(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """log softmax(logits)[token], float32 [S]."""
    chosen = logits.gather(1, tokens[:, None])[:, 0]
    return chosen - logits.logsumexp(dim=1)


def penalize(logits: torch.Tensor, params: SampleParams) -> torch.Tensor:
    """Logits with the bias added and the penalties taken."""
    if params.bias is not None:
        logits = logits + params.bias
    if params.generated is None or params.prompted is None:
        return logits
    count = params.generated
    seen = params.prompted | (count > 0)
    factor = params.repetition[:, None]
    logits = torch.where(seen, torch.where(logits > 0, logits / factor, logits * factor), logits)
    logits = logits - params.presence[:, None] * (count > 0)
    return logits - params.frequency[:, None] * count


def truncate(scores: torch.Tensor, params: SampleParams) -> torch.Tensor:
    """Scores with −inf for what top-k, top-p and min-p drop; each sees what the last one left."""
    vocab = scores.shape[1]
    ordered = scores.sort(dim=1, descending=True).values
    last = torch.where(params.top_k > 0, params.top_k, vocab).clamp(1, vocab) - 1
    floor = ordered.gather(1, last[:, None])  # [S, 1]
    p = torch.where(ordered >= floor, ordered, -torch.inf).softmax(dim=1)
    above = torch.searchsorted(-ordered, -ordered)  # first place of an equal score
    mass = torch.nn.functional.pad(p.cumsum(dim=1), (1, 0)).gather(1, above)
    top_p = params.top_p[:, None]
    kept = ((mass < top_p) | (top_p >= 1)) & (ordered >= floor)  # rounded, mass can reach 1
    kept &= p >= params.min_p[:, None] * p[:, :1]
    kept[:, 0] = True
    floor = torch.where(kept, ordered, torch.inf).amin(dim=1, keepdim=True)
    return torch.where(scores >= floor, scores, -torch.inf)


def gumbel(params: SampleParams, vocab: int) -> torch.Tensor:
    """Gumbel noise, float32 [S, vocab]: −log(−log u), u from 23 bits, never 0 or 1."""
    index = torch.arange(vocab, device=params.seed.device)[None]
    words = uniform_words(params.seed[:, None], params.draw[:, None], index)
    u = ((words >> 9).float() + 0.5) * 2.0**-23
    return -torch.log(-torch.log(u))


def lowest_argmax(scores: torch.Tensor) -> torch.Tensor:
    """Index of the largest score of each row, the lowest where several are equal; int64 [S]."""
    vocab = scores.shape[1]
    index = torch.arange(vocab, device=scores.device)
    largest = scores == scores.amax(dim=1, keepdim=True)
    return torch.where(largest, index, vocab - 1).amin(dim=1)

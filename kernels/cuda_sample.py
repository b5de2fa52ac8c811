"""Drawing the next tokens by kernels in CUDA C: `llama2gpu.ops.sample` is the definition.

At most three launches, for any number of sequences: bias and penalties where there are any; where
rows are truncated, the least score that each keeps; then noise, the largest, and its probability.
"""

import torch

from llama2gpu.kernels.cuda import CudaLaunch, Runner
from llama2gpu.kernels.cuda_ops import THREADS, plan_numbers
from llama2gpu.ops.sample import SampleParams

#: Tokens of a block that draws, 4 a thread, as `sample.cu` has them.
DRAWN = 4 * THREADS

#: Threads of a block that finds a floor and peaks of each, as `truncate.cu` has them.
FLOOR_THREADS, PEAKS = 512, 4


def plan_draw(rows: int, vocab: int) -> tuple[int, int, int]:
    """The grid of a block for each block of tokens of each row, so that one row keeps many busy."""
    return plan_numbers(rows, vocab, DRAWN)


def plan_floor(vocab: int) -> int:
    """Scores of a row that its block may keep."""
    return FLOOR_THREADS * max(PEAKS, -(-vocab // FLOOR_THREADS))


def sample(
    run: Runner, logits: torch.Tensor, params: SampleParams, counters: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens int64 [S] and their log-probabilities float32 [S]: see `ops.sample.sample`.

    logits: float32 [S, vocab]. counters: int32, at least S, zeros, which they are again
    afterwards; made here where not given.
    """
    logits = logits.contiguous()
    (rows, vocab), device = logits.shape, logits.device
    scores = penalize(run, logits, params)
    floor = None
    if params.truncated and not params.greedy:
        floor = find_floor(run, logits if scores is None else scores, params)
    if counters is None:
        counters = torch.zeros(rows, dtype=torch.int32, device=device)
    grid = plan_draw(rows, vocab)
    bests = torch.empty(rows, grid[1], 2, dtype=torch.int64, device=device)
    tokens = torch.empty(rows, dtype=torch.int64, device=device)
    logprobs = torch.empty(rows, dtype=torch.float32, device=device)
    temperature = None if params.greedy else params.temperature
    arguments = (
        logits, scores, floor, temperature, params.seed, params.draw, bests, counters, tokens,
        logprobs, vocab,
    )  # fmt: skip
    run(CudaLaunch("sample", "draw", grid, THREADS, arguments))
    return tokens, logprobs


def penalize(run: Runner, logits: torch.Tensor, params: SampleParams) -> torch.Tensor | None:
    """Logits with bias and penalties, float32 [S, vocab]; None where there are none."""
    known = params.generated is not None and params.prompted is not None
    if params.bias is None and not known:
        return None
    rows, vocab = logits.shape
    scores = torch.empty(rows, vocab, dtype=torch.float32, device=logits.device)
    penalties = (params.repetition, params.presence, params.frequency)
    counts = (params.generated, params.prompted) if known else (None, None)
    arguments = (logits, params.bias, *counts, *penalties, scores, vocab)
    run(CudaLaunch("sample", "penalize", plan_numbers(rows, vocab), THREADS, arguments))
    return scores


def find_floor(run: Runner, scores: torch.Tensor, params: SampleParams) -> torch.Tensor:
    """For each row the least key that is kept, int32 [S]; scores float32 [S, vocab].

    A key is an integer for each float32, in the same order: see `sort_key.cuh`.
    """
    (rows, vocab), device, room = scores.shape, scores.device, plan_floor(scores.shape[1])
    kept = torch.empty(rows, room, dtype=torch.float32, device=device)
    floor = torch.empty(rows, dtype=torch.int32, device=device)
    limits = (params.top_k, params.top_p, params.min_p)
    arguments = (scores, params.temperature, *limits, kept, floor, vocab, room)
    run(CudaLaunch("truncate", "find_floor", (rows, 1, 1), FLOOR_THREADS, arguments))
    return floor

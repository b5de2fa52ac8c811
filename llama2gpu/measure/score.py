"""Scoring windows of tokens on an engine: losses, and how far two models' distributions differ.

Of the reference the hidden states before the head are kept, with the head, instead of its
probabilities: for 20,000 tokens of Llama-2-7B in 16 bits that is 0.4 GB, where log-probabilities
in float16 would be 1.3 GB, and rounded. So two models need not be in memory together.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from llama2gpu.batch import Span, build_batch
from llama2gpu.engine import Engine
from llama2gpu.errors import RequestError
from llama2gpu.model import Model

#: Windows of so many tokens together make one pass; a longer window is a pass of its own.
PASS = 2048
#: Elements of the log-probabilities that are looked at together: 32 MB in float64.
LOOK = 1 << 22

#: Called with the tokens scored so far and in all.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Window:
    """Ids that a model sees together, the last one only to be predicted.

    known: how many of the first predictions are not scored: other windows made them, and here
    these ids are context only.
    """

    ids: Sequence[int]
    known: int = 0

    @property
    def seen(self) -> int:
        """Ids that the model takes, each with the one behind it to predict."""
        return len(self.ids) - 1

    @property
    def scored(self) -> int:
        """Predictions that count."""
        return self.seen - self.known


@dataclass(frozen=True)
class Scores:
    """What a model makes of some windows, beside a reference; a place is a prediction that counts.

    losses: negative log-likelihoods in nats. divergences: KL(reference ‖ model) of the next token's
    distribution, nats. Both float64 [places], on the CPU. agreement: share of the places, 0 to 1,
    where both find the same token likeliest.
    """

    losses: torch.Tensor
    divergences: torch.Tensor
    agreement: float = 1.0

    @property
    def divergence(self) -> float:
        """The mean of all places."""
        return self.divergences.mean().item()

    @property
    def divergence_99(self) -> float:
        """The 99th percentile of all places."""
        return float(np.quantile(self.divergences.numpy(), 0.99))  # PyTorch's takes 2²⁴ at most


@dataclass(frozen=True)
class Reference:
    """The model that others are compared with, as far as that needs it.

    head: a model without layers, for its `logits` alone. hidden: states [T, dim] of each pass's
    places, on the CPU.
    """

    head: Model
    hidden: list[torch.Tensor]
    scores: Scores


def cut_windows(
    documents: Iterable[Sequence[int]], context: int, tokens: int, stride: int | None = None
) -> list[Window]:
    """Windows of documents' ids: at most `context` to see, and after each the one to predict.

    Within a document each begins `stride` ids behind the one before, `context` where not given, and
    scores what none before it did: overlapping windows give each prediction at least
    context − stride + 1 ids to see, or all before it (Hugging Face's guide "Perplexity of
    fixed-length models" has the method). tokens: predicted at most in all; what comes after is not
    looked at. Raises `RequestError` where there is nothing to predict.
    """
    windows: list[Window] = []
    left = tokens
    for ids in documents:
        done, last = 0, min(len(ids) - 1, left)
        for start in range(0, last, stride or context):
            if done < last:
                end = min(start + context, last)
                windows.append(Window(ids[start : end + 1], done - start))
                done = end
        left -= done
        if not left:
            break
    if not windows:
        raise RequestError("the text is too short, with no token to predict: give more text")
    return windows


@torch.inference_mode()
def score_reference(
    engine: Engine, windows: Sequence[Window], progress: Progress = lambda done, total: None
) -> Reference:
    """Scores windows as `cut_windows` gives them; of the engine only the head is kept."""
    model, hidden, losses = engine.model, [], []
    for x, targets in _passes(engine, windows, progress):
        hidden.append(x.cpu())
        for part, wanted in _looks(model, x, targets):
            losses.append(_losses(_log_probabilities(model, part), wanted))
    weights = replace(model.weights, embed=None, layers=())
    head = Model(model.config, weights, model.backend, model.dtype, model.context)
    found = torch.cat(losses)
    return Reference(head, hidden, Scores(found, torch.zeros_like(found)))


@torch.inference_mode()
def score(
    engine: Engine,
    windows: Sequence[Window],
    reference: Reference,
    progress: Progress = lambda done, total: None,
) -> Scores:
    """Scores the windows of the reference. Raises `RequestError` where the vocabularies differ."""
    model, full = engine.model, reference.head
    if model.config.vocab != full.config.vocab:
        raise RequestError(
            f"a vocabulary of {model.config.vocab} can't be compared with one of "
            f"{full.config.vocab}: give models of one family"
        )
    losses, divergences, same = [], [], []
    passes = _passes(engine, windows, progress)
    for (x, targets), kept in zip(passes, reference.hidden, strict=True):
        for part, base, wanted in _looks(model, x, kept, targets):
            q = _log_probabilities(model, part)
            p = _log_probabilities(full, base.to(full.backend.device))
            losses.append(_losses(q, wanted))
            far, alike = _distances(q, p)
            divergences.append(far)
            same.append(alike)
    agreement = torch.cat(same).double().mean().item()
    return Scores(torch.cat(losses), torch.cat(divergences), agreement)


def compare_states(
    model: Model, x: torch.Tensor, full: Model, base: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """How far a model's hidden states [T, dim] lead from another's, for each token.

    Returns KL(full ‖ model) in nats, float64 [T], and whether both find the same token likeliest,
    bool [T], on the CPU; their means are a `Scores`' divergence and agreement.
    """
    found = []
    for part, other in _looks(model, x, base):
        q = _log_probabilities(model, part.to(model.backend.device))
        p = _log_probabilities(full, other.to(full.backend.device))
        found.append(_distances(q, p))
    divergences, same = zip(*found, strict=True)
    return torch.cat(divergences), torch.cat(same)


def _distances(q: torch.Tensor, p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(p ‖ q) [T] of log-probabilities, and where both have the same largest, on the CPU."""
    p = p.to(q.device)
    divergences = F.kl_div(q, p, reduction="none", log_target=True).sum(dim=1)
    divergences = divergences.clamp_min(0)  # rounding may leave one of zero just below it
    return divergences.cpu(), (q.argmax(1) == p.argmax(1)).cpu()


def _passes(
    engine: Engine, windows: Sequence[Window], progress: Progress
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Hidden states [T, dim] and the ids int64 [T] to predict from them, several windows at once.

    T are the places that count. Equal windows give equal passes, whatever the model.
    """
    cache, device = engine.cache, engine.device
    done, total = 0, sum(window.scored for window in windows)
    for several in _packs(windows):
        pages = [cache.pages_for(window.seen) for window in several]
        cache.grow(max(sum(pages) - cache.free_pages, 0))
        spans = [
            Span(cache.take(count), 0, window.seen)
            for count, window in zip(pages, several, strict=True)
        ]
        seen = torch.tensor([id for window in several for id in window.ids[:-1]], device=device)
        x = engine.model.forward(seen, build_batch(spans, cache.page, device), cache.layers)
        for span in spans:
            cache.give_back(list(span.pages))
        counts = [n >= window.known for window in several for n in range(window.seen)]
        wanted = [id for window in several for id in window.ids[window.known + 1 :]]
        yield x[torch.tensor(counts, device=device)], torch.tensor(wanted, device=device)
        done += len(wanted)
        progress(done, total)


def _packs(windows: Sequence[Window]) -> Iterator[list[Window]]:
    """The windows in order, in groups of `PASS` tokens."""
    several: list[Window] = []
    for window in windows:
        if several and sum(len(one.ids) for one in several) + len(window.ids) > PASS:
            yield several
            several = []
        several.append(window)
    yield several


def _looks(model: Model, *rows: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Some rows of each tensor at a time, whose logits fit in memory."""
    count = max(LOOK // model.config.vocab, 1)
    return zip(*(torch.split(x, count) for x in rows), strict=True)


def _log_probabilities(model: Model, x: torch.Tensor) -> torch.Tensor:
    """Log-probabilities float64 [T, vocab] of the next token."""
    logits = model.logits(x)
    if logits.device.type == "mps":  # it has no float64
        logits = logits.cpu()
    return logits.double().log_softmax(dim=1)


def _losses(log_probabilities: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihoods float64 [T] of the wanted ids, on the CPU."""
    ids = wanted.to(log_probabilities.device)
    return F.nll_loss(log_probabilities, ids, reduction="none").cpu()

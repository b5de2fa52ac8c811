"""How well a model predicts a text, and how far a quantized one strays from full precision.

Perplexity is exp of the mean negative log-likelihood, in nats, over all predicted tokens. A
document is BOS, its tokens, and the first of the tokens that end a text for this model; each but
the first is predicted once. A document longer than a window is cut into windows that each begin
anew, without overlap, as the literature on quantization does (GPTQ, Frantar et al., 2022; AWQ, Lin
et al., 2023): the last token that one window predicts is the first that the next one sees. With a
stride they overlap, and each predicts only what none before it did (`score.cut_windows`).

Bits per byte divide the same sum of negative log-likelihoods, that of the documents' ends with it,
by ln 2 and by the UTF-8 bytes of the text that was predicted, in which an end has none. That is the
documents' own text, and, of one that is cut short, what its predicted tokens decode to.
"""

import gc
import math
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llama2gpu.api import DEFAULT_MODEL, Llama, load
from llama2gpu.checkpoints import open_checkpoint
from llama2gpu.errors import RequestError, TokenizerError
from llama2gpu.measure.decode import machine
from llama2gpu.measure.score import Scores, Window, cut_windows, score, score_reference
from llama2gpu.open_quantizer import end_ids
from llama2gpu.quant.spec import CALIBRATED, parse_spec
from llama2gpu.quantizer import left_dense
from llama2gpu.tokenizer import Tokenizer, tokenizer_of, well_formed

#: Tokens of a window where none are asked for and the model can see more.
CONTEXT = 2048
#: Tokens scored where no number is asked for.
TOKENS = 20_000

#: Keywords of `load` that take the place of what a checkpoint tells.
OVERRIDES = ("rope_theta", "rope_scaling", "norm_eps")

#: Called with what is under way, how much of it is done, and how much there is.
Stages = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Quality:
    """A model on the text, beside the first one.

    perplexity_error: its standard error, as though tokens were independent, and so for change, that
        of the perplexity in percent. bits_per_byte: None where what was predicted has no bytes.
        divergence, divergence_99, agreement: as in `Scores`. weight_bytes: read by each decoded
        token. left_dense: which matrices can't be had as asked, in one line, where there are some.
    """

    name: str
    perplexity: float
    perplexity_error: float
    bits_per_byte: float | None
    change: float
    change_error: float
    divergence: float
    divergence_99: float
    agreement: float
    weight_bytes: int
    left_dense: str | None


@dataclass(frozen=True)
class QualityResult:
    """What was measured, on what.

    context: tokens of a window. stride: from one to the next. tokens, bytes: that were predicted.
    rows: the first is full precision, that is the checkpoint as it is stored, or in the type asked
        for; it is what the others are compared with. other_pieces: of each model that it was
        measured against, how many ids that one's own tokenizer reads differently.
    """

    model: str
    backend: str
    dtype: str
    context: int
    stride: int
    windows: int
    tokens: int
    bytes: int
    rows: list[Quality]
    other_pieces: dict[str, int]
    machine: dict[str, str]


@dataclass(frozen=True)
class _Text:
    """What all rows are measured on: the windows, their bytes, and the first row's losses."""

    windows: list[Window]
    bytes: int
    full: torch.Tensor


def measure_quality(
    documents: Sequence[str],
    quants: Sequence[str] = (),
    *,
    model: str | Path = DEFAULT_MODEL,
    against: Sequence[str | Path] = (),
    context: int | None = None,
    stride: int | None = None,
    tokens: int = TOKENS,
    kv_dtype: str = "auto",
    calibration: str | Path | None = None,
    progress: Stages = lambda what, done, total: None,
    **options: Any,
) -> QualityResult:
    """The quality of a checkpoint as it is, quantized in the ways of `quants`, and of others.

    quants: as `parse_spec` takes them. against: checkpoints of the same vocabulary, each as it is
    stored, on what the first one's tokenizer makes of the text. context: of a window; the model's
    own, but at most 2048, where not given. stride: from 1 to that, which it is where not given.
    tokens: predicted at most, from the start of the text. kv_dtype: of the cache in all rows but
    the first, and, where it is not "auto", of one more row of the first's weights. calibration: a
    text file for the methods that need one. options: more keywords of `load`, of which `against`
    takes none that replaces what the checkpoint tells.
    One model is in memory at a time. Raises a `Llama2GPUError` of one line.
    """
    first = options | {"model": model, "context": context}
    llama = _load("full precision", progress, first)
    words, size = llama.tokenizer, context or min(llama.engine.model.context, CONTEXT)
    if stride is not None and not 1 <= stride <= size:
        raise RequestError(
            f"a stride of {stride} was asked for, but a window has {size} tokens: give 1 to {size}"
        )
    other_pieces = {str(name): _other_pieces(llama, name) for name in against}
    read: list[Sequence[int]] = []
    windows = cut_windows(_encoded(llama, documents, read), size, tokens, stride)
    reference = score_reference(llama.engine, windows, partial(progress, "full precision"))
    scores = reference.scores
    count = len(scores.losses)
    text = _Text(windows, _bytes(words, documents, read, count), scores.losses)
    result = QualityResult(
        model=llama.checkpoint.path.name,
        backend=llama.backend.label,
        dtype=llama.dtype,
        context=size,
        stride=stride or size,
        windows=len(windows),
        tokens=count,
        bytes=text.bytes,
        rows=[_row(llama.checkpoint.quantization or llama.dtype, llama, scores, text)],
        other_pieces=other_pieces,
        machine=machine(llama.backend.device),
    )
    variants = [(name, first | own) for name, own in _variants(quants, kv_dtype, calibration)]
    variants += _others(against, kv_dtype, options | {"context": size, "tokenizer": words})
    for name, keywords in variants:
        del llama
        gc.collect()  # an engine is a cycle, which would keep the weights
        llama = _load(name, progress, keywords)
        scores = score(llama.engine, windows, reference, partial(progress, name))
        result.rows.append(_row(name, llama, scores, text))
    return result


def _other_pieces(llama: Llama, name: str | Path) -> int:
    """Ids that the own tokenizer of another model, where it has one, reads differently.

    Raises `RequestError` where it has another number of ids.
    """
    vocab, other = llama.checkpoint.config.vocab, open_checkpoint(name)
    if other.config.vocab != vocab:
        raise RequestError(
            f"{name} has a vocabulary of {other.config.vocab}, which can't be compared with the "
            f"{vocab} of {llama.checkpoint.path.name}: give models of one family"
        )
    try:
        own = tokenizer_of(other)
    except TokenizerError:
        return 0

    def piece(words: Tokenizer, id: int) -> bytes | None:
        token = words.token(id)
        return None if token.control else token.text  # their names are spelled in many ways

    return sum(piece(own, id) != piece(llama.tokenizer, id) for id in range(vocab))


def _variants(
    quants: Sequence[str], kv_dtype: str, calibration: str | Path | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name of each row of the first model's, and the keywords of `load` that make it."""
    if kv_dtype != "auto":
        yield f"{kv_dtype} cache", {"kv_dtype": kv_dtype}
    for text in quants:
        spec = parse_spec(text)
        keywords: dict[str, Any] = {"quant": spec, "kv_dtype": kv_dtype}
        if spec.method in CALIBRATED:
            keywords["calibration"] = calibration
        yield _named(text, kv_dtype), keywords


def _others(
    against: Sequence[str | Path], kv_dtype: str, options: Mapping[str, Any]
) -> list[tuple[str, dict[str, Any]]]:
    """The same of each other model, all its keywords: those that replace its own facts fall out."""
    alike = {name: value for name, value in options.items() if name not in OVERRIDES}
    return [
        (_named(str(model), kv_dtype), {**alike, "model": model, "kv_dtype": kv_dtype})
        for model in against
    ]


def _named(name: str, kv_dtype: str) -> str:
    return name if kv_dtype == "auto" else f"{name}, {kv_dtype} cache"


def _load(name: str, progress: Stages, keywords: Mapping[str, Any]) -> Llama:
    return load(**keywords, progress=partial(progress, f"{name}, loading"))


def _encoded(
    llama: Llama, documents: Sequence[str], read: list[Sequence[int]]
) -> Iterator[Sequence[int]]:
    """Each document's ids, with the tokens that the model was trained to begin and end it with.

    Those that were asked for are also in `read`. Slices of them are no copies.
    """
    ends = end_ids(llama.checkpoint, llama.tokenizer)
    for text in documents:
        read.append(memoryview(array("q", [*llama.tokenizer.encode(text), *ends[:1]])))
        yield read[-1]


def _bytes(
    words: Tokenizer, documents: Sequence[str], read: Sequence[Sequence[int]], tokens: int
) -> int:
    """UTF-8 bytes of what the first `tokens` predictions are of; a first id is never predicted."""
    count = 0
    for text, ids in zip(documents, read, strict=False):
        whole = len(ids) - 1 <= tokens
        told = well_formed(text) if whole else words.decode(ids[: tokens + 1])
        count += len(told.encode()) - len(words.decode(ids[:1]).encode())
        tokens -= len(ids) - 1
    return count


def _row(name: str, llama: Llama, scores: Scores, text: _Text) -> Quality:
    perplexity, error = _exp_mean(scores.losses)
    if not math.isfinite(perplexity + scores.divergence):
        raise RequestError(
            f"{name}: the model gave logits that are no numbers: its weights are damaged, "
            "or too large for --dtype fp16: try fp32 or bf16"
        )
    ratio, ratio_error = _exp_mean(scores.losses - text.full)
    bits = scores.losses.sum().item() / math.log(2)
    return Quality(
        name=name,
        perplexity=perplexity,
        perplexity_error=error,
        bits_per_byte=bits / text.bytes if text.bytes else None,
        change=100 * (ratio - 1),
        change_error=100 * ratio_error,
        divergence=scores.divergence,
        divergence_99=scores.divergence_99,
        agreement=scores.agreement,
        weight_bytes=llama.engine.model.weights.nbytes,
        left_dense=left_dense(llama.outcomes),
    )


def _exp_mean(x: torch.Tensor) -> tuple[float, float]:
    """exp of the mean, and its standard error."""
    found = x.mean().exp().item()
    return found, found * x.std(correction=0).item() / math.sqrt(len(x))

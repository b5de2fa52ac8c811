"""How well a model predicts a text, and how far a quantized one strays from full precision.

Perplexity is exp of the mean negative log-likelihood, in nats, over all predicted tokens. A
document is BOS, its tokens, and the first of the tokens that end a text for this model; each but
the first is predicted once. A document longer than a window is cut into windows that each begin
anew, without overlap, as the literature on quantization does (GPTQ, Frantar et al., 2022; AWQ, Lin
et al., 2023): the last token that one window predicts is the first that the next one sees.
"""

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llama2gpu.api import DEFAULT_MODEL, Llama, load
from llama2gpu.errors import RequestError
from llama2gpu.measure.decode import machine
from llama2gpu.measure.score import Scores, cut_windows, score, score_reference
from llama2gpu.open_quantizer import end_ids
from llama2gpu.quant.spec import CALIBRATED, parse_spec
from llama2gpu.quantizer import left_dense

#: Tokens of a window where none are asked for and the model can see more.
CONTEXT = 2048
#: Tokens scored where no number is asked for.
TOKENS = 20_000

#: Called with what is under way, how much of it is done, and how much there is.
Stages = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Quality:
    """A model on the text, beside the same model in full precision.

    change: of the perplexity, in percent; change_error: its standard error, as though tokens were
        independent. divergence, agreement: as in `Scores`. weight_bytes: read by each decoded
        token. left_dense: which matrices can't be had as asked, in one line, where there are some.
    """

    name: str
    perplexity: float
    change: float
    change_error: float
    divergence: float
    agreement: float
    weight_bytes: int
    left_dense: str | None


@dataclass(frozen=True)
class QualityResult:
    """What was measured, on what.

    context: tokens of a window. rows: the first is full precision, that is the checkpoint as it is
        stored, or in the type asked for; it is what the others are compared with.
    """

    model: str
    backend: str
    dtype: str
    context: int
    windows: int
    tokens: int
    rows: list[Quality]
    machine: dict[str, str]


def measure_quality(
    documents: Sequence[str],
    quants: Sequence[str] = (),
    *,
    model: str | Path = DEFAULT_MODEL,
    context: int | None = None,
    tokens: int = TOKENS,
    kv_dtype: str = "auto",
    calibration: str | Path | None = None,
    progress: Stages = lambda what, done, total: None,
    **options: Any,
) -> QualityResult:
    """The quality of a checkpoint as it is, and quantized in each of the ways of `quants`.

    quants: as `parse_spec` takes them. context: of a window; the model's own, but at most 2048,
    where not given. tokens: predicted at most, from the start of the text. kv_dtype: of the
    quantized models' cache, and, where it is not "auto", of one more row of unquantized weights.
    calibration: a text file for the methods that need one. options: more keywords of `load`.
    One model is in memory at a time. Raises a `Llama2GPUError` of one line.
    """
    variants = list(_variants(quants, kv_dtype, calibration))
    options |= {"model": model, "context": context}
    llama = _load("full precision", progress, options)
    size = context or min(llama.engine.model.context, CONTEXT)
    windows = cut_windows((_ids(llama, text) for text in documents), size, tokens)
    reference = score_reference(llama.engine, windows, partial(progress, "full precision"))
    losses = reference.scores.losses
    result = QualityResult(
        model=llama.checkpoint.path.name,
        backend=llama.backend.label,
        dtype=llama.dtype,
        context=size,
        windows=len(windows),
        tokens=len(losses),
        rows=[_row(llama.checkpoint.quantization or llama.dtype, llama, reference.scores, losses)],
        machine=machine(llama.backend.device),
    )
    for name, keywords in variants:
        del llama
        gc.collect()  # an engine is a cycle, which would keep the weights
        llama = _load(name, progress, options | keywords)
        scores = score(llama.engine, windows, reference, partial(progress, name))
        result.rows.append(_row(name, llama, scores, losses))
    return result


def _variants(
    quants: Sequence[str], kv_dtype: str, calibration: str | Path | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name of each row after the first, and the keywords of `load` that make it."""
    cache = "" if kv_dtype == "auto" else f"{kv_dtype} cache"
    if cache:
        yield cache, {"kv_dtype": kv_dtype}
    for text in quants:
        spec = parse_spec(text)
        keywords: dict[str, Any] = {"quant": spec, "kv_dtype": kv_dtype}
        if spec.method in CALIBRATED:
            keywords["calibration"] = calibration
        yield f"{text}, {cache}" if cache else text, keywords


def _load(name: str, progress: Stages, keywords: dict[str, Any]) -> Llama:
    return load(**keywords, progress=partial(progress, f"{name}, loading"))


def _ids(llama: Llama, text: str) -> list[int]:
    """A document's ids, with the tokens that the model was trained to begin and end it with."""
    ends = end_ids(llama.checkpoint, llama.tokenizer)
    return [*llama.tokenizer.encode(text), *ends[:1]]


def _row(name: str, llama: Llama, scores: Scores, full: torch.Tensor) -> Quality:
    perplexity = scores.losses.mean().exp().item()
    if not math.isfinite(perplexity + scores.divergence):
        raise RequestError(
            f"{name}: the model gave logits that are no numbers: its weights are damaged, "
            "or too large for --dtype fp16: try fp32 or bf16"
        )
    shift = scores.losses - full
    ratio = shift.mean().exp().item()
    return Quality(
        name=name,
        perplexity=perplexity,
        change=100 * (ratio - 1),
        change_error=100 * ratio * shift.std(correction=0).item() / math.sqrt(len(shift)),
        divergence=scores.divergence,
        agreement=scores.agreement,
        weight_bytes=llama.engine.model.weights.nbytes,
        left_dense=left_dense(llama.outcomes),
    )

"""From a checkpoint and what is asked of its quantization to what does it."""

from collections.abc import Callable
from pathlib import Path

from llama2gpu.backends.base import Backend
from llama2gpu.calibrate import CalibratedQuantizer, calibration_windows
from llama2gpu.checkpoints import Checkpoint
from llama2gpu.checkpoints.weights import Quantizer
from llama2gpu.documents import read_documents
from llama2gpu.errors import RequestError
from llama2gpu.quant import QuantSpec
from llama2gpu.quant.spec import CALIBRATED, parse_spec
from llama2gpu.quantizer import Outcome, RoundingQuantizer
from llama2gpu.tokenizer import Tokenizer, tokenizer_of


def read_spec(quant: str | QuantSpec, calibration: str | Path | None) -> QuantSpec | None:
    """The quantization that `quant` asks for; None for "none".

    Raises `RequestError` for what is none, and for a calibration text that it has no use for.
    """
    if not isinstance(quant, str | QuantSpec):
        raise RequestError(f"quant is {quant!r:.100}: give text such as 'int4', or a QuantSpec")
    spec = None if quant == "none" else parse_spec(quant) if isinstance(quant, str) else quant
    if calibration is not None and (spec is None or spec.method not in CALIBRATED):
        raise RequestError(
            f"a calibration text is for {' and '.join(CALIBRATED)}: leave it out, or choose one"
        )
    return spec


def check_dense(checkpoint: Checkpoint) -> None:
    """Raises `RequestError` where a checkpoint is quantized already."""
    if checkpoint.quantization is not None:
        raise RequestError(
            f"the checkpoint is quantized already ({checkpoint.quantization}): give the dense model"
        )


def open_quantizer(
    checkpoint: Checkpoint,
    spec: QuantSpec,
    backend: Backend,
    tokenizer: Tokenizer | None = None,
    calibration: str | Path | None = None,
    report: Callable[[Outcome], None] = lambda outcome: None,
    *,
    errors: bool = False,
) -> Quantizer:
    """What quantizes the checkpoint's weights as `spec` says, for one reading of them.

    tokenizer: of the calibration text, the checkpoint's own if None. Raises `RequestError` where
    the checkpoint is quantized already, and where a calibrated method has no text, or one that is
    too short.
    """
    config = checkpoint.config
    check_dense(checkpoint)
    if spec.method not in CALIBRATED:
        return RoundingQuantizer(spec, config, report, errors=errors)
    if calibration is None:
        raise RequestError(f"{spec.method} needs a calibration text: give --calibrate TEXT")
    words = tokenizer or tokenizer_of(checkpoint)
    ends = end_ids(checkpoint, words)[:1]
    ids = [
        id for text in read_documents([Path(calibration)]) for id in (*words.encode(text), *ends)
    ]
    windows = calibration_windows(ids, config.context)
    return CalibratedQuantizer(spec, config, backend, windows, report, errors=errors)


def end_ids(checkpoint: Checkpoint, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens that end a text: what the checkpoint tells, else what its tokenizer does."""
    return checkpoint.stop_ids or tokenizer.eos_ids

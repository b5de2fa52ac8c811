"""A checkpoint written in another format, with its tokenizer, whole or not at all."""

from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path

import torch

from llama2gpu.checkpoints.base import Checkpoint, tensor_shapes
from llama2gpu.checkpoints.chat_template import chat_template_of
from llama2gpu.checkpoints.gguf_fields import NO_WORDS, words_fields
from llama2gpu.checkpoints.gguf_names import Words
from llama2gpu.checkpoints.gguf_write import Forms, write_gguf
from llama2gpu.checkpoints.gptq_write import misfit
from llama2gpu.checkpoints.llama2c_write import check_llama2c, write_llama2c
from llama2gpu.checkpoints.new_folder import check_file, new_files, writing
from llama2gpu.checkpoints.save import save_tensors
from llama2gpu.checkpoints.tally import Tally, narrowed, squares
from llama2gpu.checkpoints.weights import Progress
from llama2gpu.errors import RequestError, TokenizerError
from llama2gpu.quant import Dense, Weight
from llama2gpu.tokenizer import Tokenizer
from llama2gpu.tokenizer.export import vocabulary_of
from llama2gpu.tokenizer.llama2c_write import tokenizer_bin

#: What `convert` writes: versions of llama2.c's format by name, and the others.
LLAMA2C = {"llama2c-v0": 0, "llama2c-v1": 1, "llama2c-v2": 2}
FORMATS = ("hf", *LLAMA2C, "gguf")

_TOKENIZER = "tokenizer.bin"
#: What llama2.c's programs stop at.
_LLAMA2C_STOPS = {1, 2}


@dataclass(frozen=True)
class Target:
    """What is to be written where.

    format: one of `FORMATS`. dtype: of dense matrices, None for the checkpoint's own. quant: for
    gguf, one of `gguf_encode.BLOCKS`; None keeps quantized matrices as they are. dense: no matrix
    stays quantized. overwrite: replace what was written before.
    """

    format: str
    path: Path
    dtype: torch.dtype | None = None
    quant: str | None = None
    dense: bool = False
    overwrite: bool = False


def convert(
    checkpoint: Checkpoint, target: Target, tokenizer: Tokenizer | None, progress: Progress
) -> Tally:
    """Writes the checkpoint and what can be of its tokenizer; notes tell what can't.

    Memory: a tensor as it is stored, and for hf a shard. Raises `RequestError` for a model or an
    option that the format has no place for, where the place is taken, and where the disk is full;
    `CheckpointError` where the checkpoint can't be read. Nothing is left behind then. Without a
    tokenizer, an hf folder gets the files that lie with the checkpoint.
    """
    tally = Tally()
    if target.format == "hf":
        _to_huggingface(checkpoint, target, tokenizer, tally, progress)
    elif target.format == "gguf":
        _to_gguf(checkpoint, target, tokenizer, tally, progress)
    else:
        _to_llama2c(checkpoint, target, tokenizer, tally, progress)
    return tally


def _sources(checkpoint: Checkpoint, tokenizer: Tokenizer | None) -> Iterator[Path]:
    """The files that are read."""
    yield from checkpoint.path.iterdir() if checkpoint.path.is_dir() else [checkpoint.path]
    yield from checkpoint.parts
    if tokenizer is not None:
        yield tokenizer.path


def _to_llama2c(
    checkpoint: Checkpoint,
    target: Target,
    tokenizer: Tokenizer | None,
    tally: Tally,
    progress: Progress,
) -> None:
    out, config = target.path, checkpoint.config
    check_llama2c(config)
    check_file(out, _sources(checkpoint, tokenizer), target.overwrite)
    words, beside = None, out.with_name(_TOKENIZER)
    if tokenizer is not None:
        try:
            words = tokenizer_bin(vocabulary_of(tokenizer), config.vocab)
        except TokenizerError as error:
            tally.notes.append(str(error))
    tally.files.append(out)
    if words is not None:
        if beside == out:
            raise RequestError(f"{out} is the name of the tokenizer beside it: give another")
        tally.files.append(beside)
        if _holds(beside, words):
            words = None
        else:
            check_file(beside, _sources(checkpoint, tokenizer), target.overwrite)
    elif beside.exists():
        tally.notes.append(f"{beside}, which its programs would take, is not this model's")
    _note_stops(tally, "its programs know two", checkpoint, _LLAMA2C_STOPS)
    with new_files(out) as work, writing(out):
        version = LLAMA2C[target.format]
        write_llama2c(checkpoint, work / out.name, version, tally, progress)
        if words is not None:
            (work / _TOKENIZER).write_bytes(words)


def _note_stops(tally: Tally, why: str, checkpoint: Checkpoint, known: Set[object]) -> None:
    """Tells of the tokens that end a text and that the format has no place for."""
    if others := sorted({*checkpoint.stop_ids} - known):
        listed = ", ".join(map(str, others))
        tally.notes.append(f"tokens that end a text and are not carried over: {listed} ({why})")


def _holds(path: Path, data: bytes) -> bool:
    """Whether a file holds these bytes."""
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except OSError:
        return False


def _to_gguf(
    checkpoint: Checkpoint,
    target: Target,
    tokenizer: Tokenizer | None,
    tally: Tally,
    progress: Progress,
) -> None:
    out = target.path
    check_file(out, _sources(checkpoint, tokenizer), target.overwrite)
    words = dict(NO_WORDS)
    if tokenizer is not None:
        try:
            words = words_fields(
                vocabulary_of(tokenizer),
                checkpoint.config.vocab,
                checkpoint.bos_id,
                checkpoint.stop_ids,
            )
            named = {words.get(key) for key in (Words.EOS, Words.EOT, Words.EOM)}
            _note_stops(tally, "its file names three", checkpoint, named)
        except TokenizerError as error:
            tally.notes.append(str(error))
    if template := chat_template_of(checkpoint):
        words[Words.CHAT_TEMPLATE] = template
    forms = Forms(target.dtype or checkpoint.dtype, target.quant, target.dense)
    with new_files(out) as work, writing(out):
        write_gguf(checkpoint, work / out.name, forms, words, tally, progress)
    tally.files.append(out)


def _to_huggingface(
    checkpoint: Checkpoint,
    target: Target,
    tokenizer: Tokenizer | None,
    tally: Tally,
    progress: Progress,
) -> None:
    dtype = target.dtype or checkpoint.dtype
    tensors = _tensors(checkpoint, dtype, target.dense, tally)
    save_tensors(
        checkpoint, target.path, tensors, dtype,
        tokenizer=tokenizer, overwrite=target.overwrite, progress=progress,
    )  # fmt: skip
    tally.files += sorted(target.path.iterdir())


def _tensors(
    checkpoint: Checkpoint, dtype: torch.dtype, dense: bool, tally: Tally
) -> Iterator[tuple[str, Weight | torch.Tensor]]:
    """All tensors by canonical name: quantized where GPTQ's layout and its readers can have it."""
    lost: list[str] = []
    for name, shape in tensor_shapes(checkpoint.config):
        weight = Dense(checkpoint.read(name)) if len(shape) == 1 else checkpoint.weight(name)
        if not isinstance(weight, Dense):
            if not dense and name != "embed" and misfit(weight) is None:
                tally.add(0.0, 0.0)
                yield name, weight
                continue
            lost += [] if dense else [name]
            weight = Dense(weight.dequantize(torch.float32))
        kept, error = narrowed(name, weight.data, dtype)
        tally.add(error, squares(weight.data) if error else 0.0)
        yield name, kept
    tally.note_matrices(lost, "made dense, as GPTQ's layout or its readers can't have them")

"""A checkpoint read, quantized if asked, and written as a Hugging Face folder, layer by layer."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from llama2gpu.checkpoints.base import Checkpoint
from llama2gpu.checkpoints.huggingface_write import write_huggingface
from llama2gpu.checkpoints.weights import CanonicalReader, Progress, Quantizer
from llama2gpu.config import Config
from llama2gpu.quant import Weight
from llama2gpu.tokenizer import Tokenizer
from llama2gpu.weights import LayerWeights

Named = tuple[str, Weight | torch.Tensor]


def save_huggingface(
    checkpoint: Checkpoint,
    out: Path,
    quantizer: Quantizer | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    device: torch.device | None = None,
    overwrite: bool = False,
    progress: Progress = lambda done, total: None,
) -> None:
    """Writes a folder that holds the checkpoint, dense tensors in its own dtype.

    device: where the norms are handed to the quantizer. tokenizer: instead of the checkpoint's own.
    Memory: a layer and a shard. Raises what reading, quantizing and writing raise; then nothing is
    left behind.
    """
    save_tensors(
        checkpoint, out, _tensors(checkpoint, quantizer, device), checkpoint.dtype,
        tokenizer=tokenizer, overwrite=overwrite, progress=progress,
    )  # fmt: skip


def save_tensors(
    checkpoint: Checkpoint,
    out: Path,
    tensors: Iterable[Named],
    dtype: torch.dtype,
    *,
    tokenizer: Tokenizer | None = None,
    overwrite: bool = False,
    progress: Progress = lambda done, total: None,
) -> None:
    """The same of tensors that the checkpoint became, by canonical name; dense ones in `dtype`."""
    config, total = checkpoint.config, checkpoint.config.parameters * dtype.itemsize
    done = 0
    with write_huggingface(
        out, config, dtype, source=checkpoint, tokenizer=tokenizer, overwrite=overwrite
    ) as folder:
        for name, weight in tensors:
            folder.add(name, weight)
            done += _size(weight) * dtype.itemsize
            progress(min(done, total), total)


def _tensors(
    checkpoint: Checkpoint, quantizer: Quantizer | None, device: torch.device | None
) -> Iterator[Named]:
    """All tensors by canonical name; a tied embedding last, since it is the head."""
    config = checkpoint.config
    reader = CanonicalReader(checkpoint, checkpoint.dtype, device)
    table = reader.matrix("embed")
    if quantizer is not None:
        quantizer.embed(table)
    if not config.tied:
        yield "embed", table
    for n in range(config.layers):
        layer = reader.layer(n)
        yield from _split(config, n, layer if quantizer is None else quantizer.layer(n, layer))
    norm, head = reader.norm(), table if config.tied else reader.matrix("output")
    if quantizer is not None:
        norm, head = quantizer.output(norm, head, config.tied)
    yield "norm", norm.clone()
    yield "embed" if config.tied else "output", head


def _split(config: Config, n: int, layer: LayerWeights) -> Iterator[Named]:
    """The tensors of a layer from its canonical matrices."""
    prefix, q, kv = f"layers.{n}.", config.q_rows, config.kv_rows
    rows = {"wq": slice(q), "wk": slice(q, q + kv), "wv": slice(q + kv, None)}
    for name, some in rows.items():
        yield prefix + name, layer.w_qkv.rows(some)
    yield prefix + "wo", layer.w_o
    yield prefix + "w1", layer.w_13.rows(slice(0, None, 2))
    yield prefix + "w3", layer.w_13.rows(slice(1, None, 2))
    yield prefix + "w2", layer.w_2
    yield prefix + "attention_norm", layer.attention_norm.clone()
    yield prefix + "ffn_norm", layer.ffn_norm.clone()


def _size(weight: Weight | torch.Tensor) -> int:
    return weight.numel() if isinstance(weight, torch.Tensor) else weight.shape[0] * weight.shape[1]

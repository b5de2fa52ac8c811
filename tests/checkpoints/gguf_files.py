"""GGUF files, written by the `gguf` package from canonical tensors; names are spelled out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind

from llama2gpu.config import Config
from tests.checkpoints.writers import Tensors, random_tensors

#: Sizes whose matrices any type of blocks can hold.
CONFIG = Config(
    dim=256, hidden=512, layers=1, heads=4, kv_heads=2, head_dim=64, vocab=96, context=64
)
KINDS = {
    "attention_norm": "attn_norm",
    "wq": "attn_q",
    "wk": "attn_k",
    "wv": "attn_v",
    "wo": "attn_output",
    "ffn_norm": "ffn_norm",
    "w1": "ffn_gate",
    "w2": "ffn_down",
    "w3": "ffn_up",
}
TOP = {"embed": "token_embd.weight", "norm": "output_norm.weight", "output": "output.weight"}


def gguf_name(canonical: str) -> str:
    if canonical in TOP:
        return TOP[canonical]
    _, n, kind = canonical.split(".")
    return f"blk.{n}.{KINDS[kind]}.weight"


def sizes_of(c: Config) -> dict[str, Any]:
    """The keys that every file has."""
    return {
        "llama.context_length": c.context,
        "llama.embedding_length": c.dim,
        "llama.block_count": c.layers,
        "llama.feed_forward_length": c.hidden,
        "llama.attention.head_count": c.heads,
        "llama.attention.head_count_kv": c.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": c.norm_eps,
        "llama.rope.freq_base": c.rope_theta,
    }


def blocks_of(tensor: torch.Tensor, kind: Kind) -> np.ndarray[Any, Any]:
    """The bytes `[N, …]` of a tensor; vectors, and rows that are no blocks, stay float32."""
    return np.asarray(gguf.quantize(tensor.float().numpy(), kind_of(tensor, kind)))


def kind_of(tensor: torch.Tensor, kind: Kind) -> Kind:
    fits = tensor.dim() == 2 and tensor.shape[1] % gguf.GGML_QUANT_SIZES[kind][0] == 0
    return kind if fits else Kind.F32


def write_gguf(
    path: Path,
    config: Config = CONFIG,
    tensors: Tensors | None = None,
    kind: Kind = Kind.F32,
    *,
    blocks: Mapping[str, tuple[np.ndarray[Any, Any], Kind]] | None = None,
    arch: str = "llama",
    **fields: Any,
) -> Path:
    """Writes one file.

    blocks: tensors beside these, or instead of them, by their names in the file. fields: keys, with
    "__" for a dot, that are added to those of `sizes_of`, or left out where None.
    """
    named = {
        gguf_name(name): (blocks_of(tensor, kind), kind_of(tensor, kind))
        for name, tensor in (random_tensors(config) if tensors is None else tensors).items()
    }
    keys = sizes_of(config) | {key.replace("__", "."): value for key, value in fields.items()}
    writer = gguf.GGUFWriter(path, arch)
    writer.data_alignment = keys.get("general.alignment", writer.data_alignment)
    for key, value in keys.items():
        _add(writer, key, value)
    for name, (data, its_kind) in (named | dict(blocks or {})).items():
        writer.add_tensor(name, data, raw_dtype=its_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    match value:
        case None:
            pass
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)


def spm_fields(model: Path) -> dict[str, Any]:
    """The keys of a SentencePiece model, as llama.cpp's converter writes them."""
    from sentencepiece import SentencePieceProcessor

    p: Any = SentencePieceProcessor(model_file=str(model))
    ids = range(p.get_piece_size())
    kinds = [(p.is_unknown, 2), (p.is_control, 3), (p.is_unused, 5), (p.is_byte, 6)]
    return {
        "tokenizer__ggml__model": "llama",
        "tokenizer__ggml__tokens": [p.id_to_piece(id) for id in ids],
        "tokenizer__ggml__scores": [p.get_score(id) for id in ids],
        "tokenizer__ggml__token_type": [
            next((number for test, number in kinds if test(id)), 1) for id in ids
        ],
        "tokenizer__ggml__bos_token_id": p.bos_id(),
        "tokenizer__ggml__eos_token_id": p.eos_id(),
    }


def llama2c_fields(entries: Sequence[tuple[float, bytes]]) -> dict[str, Any]:
    """The keys of llama2.c's tokenizer.bin."""
    texts = [text.decode().strip("\n").replace(" ", "▁") for _, text in entries]
    return {
        "tokenizer__ggml__model": "llama",
        "tokenizer__ggml__tokens": texts,
        "tokenizer__ggml__scores": [score for score, _ in entries],
        "tokenizer__ggml__token_type": [2, 3, 3, *[6] * 256, *[1] * (len(entries) - 259)],
        "tokenizer__ggml__bos_token_id": 1,
        "tokenizer__ggml__eos_token_id": 2,
    }

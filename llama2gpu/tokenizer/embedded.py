"""Tokenizers that lie within a checkpoint, as the files that they would be."""

import json
from pathlib import Path
from typing import Any

from llama2gpu.tokenizer.files import damaged
from llama2gpu.tokenizer.huggingface_files import Companions
from llama2gpu.tokenizer.sentencepiece_model import model_bytes
from llama2gpu.vocabulary import Embedded, MergedVocabulary, PieceType, ScoredVocabulary

#: Bytes as GPT-2's letters for them, and back.
_LETTERS = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": False,
    "use_regex": False,
}
_ADDED = (PieceType.CONTROL, PieceType.UNKNOWN, PieceType.USER_DEFINED)


def embedded_file(embedded: Embedded, path: Path) -> tuple[str, bytes]:
    """Its name and its bytes: of a tokenizer.model, or of a tokenizer.json.

    path: the checkpoint, for errors. Raises `TokenizerError` for pieces that make no tokenizer.
    """
    if isinstance(embedded, ScoredVocabulary):
        return "tokenizer.model", model_bytes(embedded, path)
    if isinstance(embedded, MergedVocabulary):
        return "tokenizer.json", json.dumps(_tokenizer_json(embedded, path)).encode()
    return "tokenizer.model", embedded.data


def companions_of(vocabulary: MergedVocabulary) -> Companions:
    """Which of its tokens start and end a text."""
    ids = {"bos_token_id": vocabulary.bos_id, "eos_token_id": list(vocabulary.eos_ids)}
    adds = vocabulary.adds_bos and vocabulary.bos_id is not None
    return Companions(
        {"tokenizer_config.json": {"add_bos_token": adds}, "generation_config.json": ids}
    )


def _tokenizer_json(vocabulary: MergedVocabulary, path: Path) -> dict[str, Any]:
    """A byte-level vocabulary as the tokenizers library writes it."""
    pieces, types = vocabulary.pieces, vocabulary.types
    ids = {piece: id for id, piece in enumerate(pieces)}
    if len(ids) < len(pieces):
        raise damaged(path, f"{len(pieces) - len(ids)} of its tokens are there twice")
    return {
        "version": "1.0",
        "added_tokens": [
            _added(id, pieces[id], types[id]) for id in ids.values() if types[id] in _ADDED
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _splits(vocabulary)},
        "post_processor": _template(vocabulary),
        "decoder": _LETTERS,
        "model": {
            "type": "BPE",
            "ignore_merges": vocabulary.whole_words,
            "vocab": ids,
            "merges": list(vocabulary.merges),
        },
    }


def _added(id: int, piece: str, kind: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": id, "content": piece, "special": kind != PieceType.USER_DEFINED, **flags}


def _splits(vocabulary: MergedVocabulary) -> list[dict[str, Any]]:
    how = {"type": "Split", "behavior": "Isolated", "invert": False}
    return [*(how | {"pattern": {"Regex": words}} for words in vocabulary.words), _LETTERS]


def _template(vocabulary: MergedVocabulary) -> dict[str, Any] | None:
    """What puts `bos_id` before a text."""
    if not vocabulary.adds_bos or vocabulary.bos_id is None:
        return None
    name = vocabulary.pieces[vocabulary.bos_id]
    start = {"SpecialToken": {"id": name, "type_id": 0}}
    single = [start, {"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {
            name: {"id": name, "ids": [vocabulary.bos_id], "tokens": [name]},
        },
    }

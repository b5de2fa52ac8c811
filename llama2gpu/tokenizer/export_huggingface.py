"""A tokenizer.json as data: its merges, or SentencePiece's scores where they say the same."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llama2gpu.tokenizer.export_parts import pairs_of, refuse
from llama2gpu.tokenizer.huggingface import HuggingFace
from llama2gpu.tokenizer.huggingface_decoder import is_byte
from llama2gpu.vocabulary import MergedVocabulary, PieceType, ScoredVocabulary


def of_huggingface(tokenizer: HuggingFace) -> MergedVocabulary | ScoredVocabulary:
    """The pieces of a tokenizer.json. Raises `TokenizerError` for what no Llama has."""
    spec = json.loads(tokenizer.library.to_str())
    model = spec["model"]
    if model["type"] != "BPE" or any(model.get(key) for key in _UNUSUAL):
        refuse(f"its model {model['type']} is none that Llama has")
    pieces, types = _huggingface_pieces(tokenizer, spec)
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    if tokenizer.byte_level:
        return _merged(tokenizer, spec, pieces, types, merges)
    return _scored(tokenizer, spec, pieces, types, merges)


#: What no Llama's BPE has.
_UNUSUAL = ("continuing_subword_prefix", "end_of_word_suffix", "dropout")


def _huggingface_pieces(
    tokenizer: HuggingFace, spec: Mapping[str, Any]
) -> tuple[list[str], list[int]]:
    model = spec["model"]
    pieces = [f"[PAD{n}]" for n in range(tokenizer.vocab)]
    types: list[int] = [PieceType.UNUSED] * tokenizer.vocab
    for piece, id in model["vocab"].items():
        pieces[id], types[id] = piece, PieceType.NORMAL
        if model.get("byte_fallback") and is_byte(piece):
            types[id] = PieceType.BYTE
    for token in spec["added_tokens"]:
        kind = PieceType.CONTROL if token["special"] else PieceType.USER_DEFINED
        pieces[token["id"]], types[token["id"]] = token["content"], kind
    unknown = model["vocab"].get(model.get("unk_token"))
    if unknown is not None:
        types[unknown] = PieceType.UNKNOWN
    return pieces, types


def _merged(
    tokenizer: HuggingFace,
    spec: Mapping[str, Any],
    pieces: Sequence[str],
    types: Sequence[int],
    merges: Sequence[tuple[str, ...]],
) -> MergedVocabulary:
    if spec["normalizer"] is not None:
        refuse("it normalizes characters before it splits a text")
    steps = list(_steps(spec["pre_tokenizer"], "pretokenizers"))
    if any(step.get("add_prefix_space") for step in steps):
        refuse("it puts a space before a text, which byte-level BPE of Llamas does not")
    return MergedVocabulary(
        pieces,
        types,
        [" ".join(merge) for merge in merges],
        [word for step in steps for word in _words(step)],
        whole_words=bool(spec["model"].get("ignore_merges")),
        bos_id=tokenizer.bos_id,
        eos_ids=tokenizer.eos_ids,
        adds_bos=tokenizer.adds_bos,
    )


def _steps(step: dict[str, Any] | None, key: str) -> Iterator[dict[str, Any]]:
    """A stage of a tokenizer.json in its parts."""
    if step is None:
        return
    if step["type"] != "Sequence":
        yield step
        return
    for part in step[key]:
        yield from _steps(part, key)


def _words(step: Mapping[str, Any]) -> Iterator[str]:
    """The regular expressions of a stage that splits a text into words."""
    match step:
        case {"type": "ByteLevel", "use_regex": bool(split)}:
            yield from [GPT2_WORDS] if split else []
        case {"type": "Digits", "individual_digits": True}:
            yield r"\p{N}"
        case {"type": "Split", "pattern": {"Regex": str(word)}, "behavior": "Isolated",
              "invert": False}:  # fmt: skip
            yield word
        case _:
            refuse(f"it splits words by {step['type']}")


#: How GPT-2 splits a text; "ByteLevel" has it built in.
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _scored(
    tokenizer: HuggingFace,
    spec: Mapping[str, Any],
    pieces: Sequence[str],
    types: Sequence[int],
    merges: Sequence[tuple[str, ...]],
) -> ScoredVocabulary:
    """SentencePiece's scores from the order of the merges, where these are all that it would do."""
    ranks: dict[str, int] = {}
    for pair in merges:
        ranks.setdefault("".join(pair), len(ranks))
    made = ["".join(pair) for pair in merges]
    runs = sum(a != b for a, b in zip(made, ["", *made], strict=False))
    normal = [p for p, kind in zip(pieces, types, strict=True) if kind == PieceType.NORMAL]
    if runs != len(ranks) or set(pairs_of(dict.fromkeys(normal, 0))) != set(merges):
        refuse("its merges are not those of a SentencePiece model")
    worst = -float(len(ranks))
    return ScoredVocabulary(
        pieces,
        [-float(ranks[piece]) if piece in ranks else worst for piece in pieces],
        types,
        tokenizer.bos_id,
        tokenizer.eos_ids,
        tokenizer.adds_bos,
        _space_prefix(spec),
    )


def _space_prefix(spec: Mapping[str, Any]) -> bool:
    """Whether a text gets a mark before it, as spaces become; refuses what does anything else."""
    steps = [*_steps(spec["normalizer"], "normalizers")]
    steps += _steps(spec["pre_tokenizer"], "pretokenizers")
    prefix = marks = False
    for step in steps:
        match step:
            case {"type": "Prepend", "prepend": "▁"}:
                prefix = True
            case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
                marks = True
            case {"type": "Metaspace", "replacement": "▁", "prepend_scheme": str(scheme),
                  "split": False}:  # fmt: skip
                prefix, marks = scheme != "never", True
            case _:
                refuse(f"it normalizes a text by {step['type']}")
    if not marks:
        refuse("it does not mark spaces as SentencePiece does")
    return prefix

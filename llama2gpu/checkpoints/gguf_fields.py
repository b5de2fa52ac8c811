"""The keys of a GGUF file: a model's sizes and constants, and its tokenizer.

Names: `checkpoints.gguf_names`; what llama.cpp makes of them: its `llama-model.cpp` and
`llama-vocab.cpp`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from llama2gpu.checkpoints.gguf_names import MERGED, SCORED, Model, Words
from llama2gpu.checkpoints.gguf_splittings import SPLITTINGS
from llama2gpu.config import Config, RopeScaling
from llama2gpu.errors import RequestError, TokenizerError
from llama2gpu.ops.rope import yarn_scale
from llama2gpu.vocabulary import MergedVocabulary, PieceType, ScoredVocabulary

Fields = Mapping[str, Any]

#: YaRN's beta_fast and beta_slow, whose keys llama.cpp reads for other architectures alone.
_BETAS = (32.0, 1.0)
#: A file without a tokenizer.
NO_WORDS: Fields = {Words.MODEL: "none"}


def model_fields(c: Config) -> dict[str, Any]:
    """Sizes and constants. Raises `RequestError` for a RoPE scaling that the keys can't tell."""
    return {
        Model.CONTEXT: c.context,
        Model.DIM: c.dim,
        Model.LAYERS: c.layers,
        Model.HIDDEN: c.hidden,
        Model.HEADS: c.heads,
        Model.KV_HEADS: c.kv_heads,
        Model.KEY_LENGTH: c.head_dim,
        Model.VALUE_LENGTH: c.head_dim,
        Model.NORM_EPS: c.norm_eps,
        Model.VOCAB: c.vocab,
        Model.ROPE_DIM: c.head_dim,
        Model.ROPE_THETA: c.rope_theta,
        **({} if c.rope_scaling is None else _scaling(c.rope_scaling)),
    }


def _scaling(s: RopeScaling) -> dict[str, Any]:
    """llama3's is a tensor, the divisors of the frequencies; a type would scale them once more."""
    if s.type == "llama3":
        return {Model.ROPE_ORIGINAL: s.original_context}
    fields = {Model.ROPE_TYPE: s.type, Model.ROPE_FACTOR: s.factor}
    if s.type == "linear":
        return fields
    if not s.truncate or (s.beta_fast, s.beta_slow) != _BETAS:
        raise RequestError(
            "llama.cpp runs a Llama's YaRN with truncate and betas of "
            f"{_BETAS[0]:g} and {_BETAS[1]:g} alone: give --to hf"
        )
    usual = yarn_scale(replace(s, attention_factor=None, mscale=None, mscale_all_dim=None))
    return fields | {
        Model.ROPE_ORIGINAL: s.original_context,
        Model.ROPE_ATTENTION: yarn_scale(s) / usual,
    }


def words_fields(
    vocabulary: ScoredVocabulary | MergedVocabulary,
    rows: int,
    bos_id: int | None,
    stop_ids: Sequence[int],
) -> dict[str, Any]:
    """The tokenizer of a model with `rows` in its embedding; those without a piece are unused.

    Raises `TokenizerError` for words that llama.cpp would split otherwise.
    """
    missing = range(len(vocabulary.pieces), rows)
    fields: dict[str, Any] = {
        Words.TOKENS: [*_pieces(vocabulary), *(f"[PAD{n}]" for n in missing)],
        Words.TYPES: [*map(int, vocabulary.types), *(int(PieceType.UNUSED) for _ in missing)],
        Words.ADD_BOS: vocabulary.adds_bos,
        Words.ADD_EOS: False,
    }
    if isinstance(vocabulary, ScoredVocabulary):
        fields[Words.MODEL], fields[Words.PRE] = SCORED, "default"
        fields[Words.SCORES] = [*map(float, vocabulary.scores), *(-1e4 for _ in missing)]
        fields[Words.SPACE_PREFIX] = vocabulary.space_prefix
        fields[Words.TRIMS_SPACES] = vocabulary.trims_spaces
    else:
        fields[Words.MODEL], fields[Words.PRE] = MERGED, _splitting(vocabulary)
        fields[Words.MERGES] = list(vocabulary.merges)
    return fields | _ids(vocabulary, bos_id, stop_ids)


def _pieces(vocabulary: ScoredVocabulary | MergedVocabulary) -> Iterator[str]:
    """As they are, but those that stay whole in a text, which llama.cpp looks up in the text."""
    for piece, kind in zip(vocabulary.pieces, vocabulary.types, strict=True):
        yield piece.replace("▁", " ") if kind == PieceType.USER_DEFINED else piece


def _splitting(vocabulary: MergedVocabulary) -> str:
    """What llama.cpp calls the way in which words are split."""
    how = tuple(vocabulary.words), vocabulary.whole_words
    found = [s for s in SPLITTINGS if (tuple(s.words), s.whole_words) == how]
    if not found:
        raise TokenizerError(
            "the tokenizer can't be written into GGUF: llama.cpp splits no words as it does"
        )
    return found[0].names[0]


def _ids(
    vocabulary: ScoredVocabulary | MergedVocabulary, bos_id: int | None, stop_ids: Sequence[int]
) -> dict[str, int]:
    """Special tokens by key; of those that end a text, three have one."""
    bos = vocabulary.bos_id if bos_id is None else bos_id
    stops = [id for id in stop_ids or vocabulary.eos_ids if id < len(vocabulary.pieces)]
    stops.sort(key=lambda id: id not in vocabulary.eos_ids)
    found = {} if bos is None else {Words.BOS: bos}
    for key, name in ((Words.EOT, "<|eot_id|>"), (Words.EOM, "<|eom_id|>")):
        named = [id for id in stops if vocabulary.pieces[id] == name]
        if named and len(stops) > 1:
            found[key] = named[0]
            stops.remove(named[0])
    keys = [key for key in (Words.EOS, Words.EOT, Words.EOM) if key not in found]
    found |= dict(zip(keys, stops, strict=False))
    unknown = [n for n, kind in enumerate(vocabulary.types) if kind == PieceType.UNKNOWN]
    return found | ({Words.UNKNOWN: unknown[0]} if unknown else {})

"""The tokenizer within a GGUF file: its vocabulary, and which tokens start and end a text."""

from collections.abc import Mapping, Sequence

from llama2gpu.checkpoints.fields import Fields
from llama2gpu.checkpoints.gguf_config import fields_of
from llama2gpu.checkpoints.gguf_header import Array, Header
from llama2gpu.checkpoints.gguf_names import MERGED, SCORED, Words
from llama2gpu.checkpoints.gguf_splittings import find_splitting
from llama2gpu.errors import CheckpointError, TokenizerError
from llama2gpu.vocabulary import MergedVocabulary, PieceType, ScoredVocabulary

_NO_ID = 0xFFFFFFFF
_MOST_TOKENS, _MOST_MERGES = 1 << 20, 1 << 21
_REMEDY = "give its tokenizer.model or tokenizer.json with --tokenizer PATH"
#: Values of `Words.MODEL` that stand for no tokenizer.
_NONE = ("none", "no_vocab")
#: Tokens that end a turn or a text, which many files do not name as such.
_ENDS = (
    *("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>"),
    *("<|end_of_text|>", "<|endoftext|>", "</s>"),
)
_SPECIAL = (PieceType.CONTROL, PieceType.USER_DEFINED)


def read_vocabulary(header: Header) -> ScoredVocabulary | MergedVocabulary | None:
    """The tokenizer; None where the file has none.

    Raises `TokenizerError` where it is damaged, or of a kind that no Llama has.
    """
    fields = fields_of(header)
    try:
        kind = fields.text(Words.MODEL, _NONE[0])
        if kind in _NONE:
            return None
        if kind not in (SCORED, MERGED):
            raise _refused(header, f"{Words.MODEL} {kind[:40]!r}")
        pieces = _pieces(header)
        types = _numbers(header, Words.TYPES, len(pieces), PieceType.NORMAL)
        bos, eos = bos_id(header, len(pieces)), stop_ids(header, len(pieces))
        if kind == MERGED:
            return _merged(header, fields, pieces, [*map(int, types)], bos, eos)
        return ScoredVocabulary(
            pieces,
            _numbers(header, Words.SCORES, len(pieces), 0.0),
            [*map(int, types)],
            bos_id=bos,
            eos_ids=eos,
            adds_bos=fields.flag(Words.ADD_BOS, True),
            space_prefix=fields.flag(Words.SPACE_PREFIX, True),
            trims_spaces=fields.flag(Words.TRIMS_SPACES, False),
        )
    except CheckpointError as error:
        raise TokenizerError(str(error)) from None


def _merged(
    header: Header,
    fields: Fields,
    pieces: Sequence[str],
    types: Sequence[int],
    bos: int | None,
    eos: tuple[int, ...],
) -> MergedVocabulary:
    name = fields.text(Words.PRE, "default")
    splitting = find_splitting(name)
    if splitting is None:
        raise _refused(header, f"{Words.PRE} {name[:40]!r}")
    return MergedVocabulary(
        pieces,
        types,
        _texts(header, Words.MERGES, _MOST_MERGES),
        splitting.words,
        splitting.whole_words,
        bos_id=bos,
        eos_ids=eos,
        adds_bos=fields.flag(Words.ADD_BOS, splitting.adds_bos),
    )


def bos_id(header: Header, count: int) -> int | None:
    """The token of `count` that starts a text, where the file tells."""
    return next(iter(_ids(header, count, {Words.BOS: 1})), None)


def stop_ids(header: Header, count: int) -> tuple[int, ...]:
    """The tokens of `count` that end a text or a turn: those that are named, then well-known ones.

    Raises `CheckpointError` for a token beyond `count`, and for lists that are damaged.
    """
    named = _ids(header, count, {Words.EOS: 2, Words.EOT: _NO_ID, Words.EOM: _NO_ID})
    if Words.TOKENS in header.values:
        pieces = _pieces(header)
        types = _numbers(header, Words.TYPES, len(pieces), PieceType.NORMAL)
        special = {p: n for n, p in enumerate(pieces[:count]) if types[n] in _SPECIAL}
        named += [special[name] for name in _ENDS if name in special]
    return tuple(dict.fromkeys(named))


def _ids(header: Header, count: int, keys: Mapping[str, int]) -> list[int]:
    """The tokens under the keys, or SentencePiece's usual ones, which stand beside."""
    fields = fields_of(header)
    scored = fields.get(Words.MODEL) == SCORED
    ids = {
        key: fields.integer(key, usual if scored and usual < count else _NO_ID)
        for key, usual in keys.items()
    }
    # all bits set is how some writers say that there is none
    ids = {key: id for key, id in ids.items() if id not in (-1, _NO_ID)}
    for key, id in ids.items():
        if not 0 <= id < count:
            raise CheckpointError(
                f"{header.path}: {key} is {id}, but there are {count} tokens: "
                "it is damaged, download it again"
            )
    return [*ids.values()]


def _pieces(header: Header) -> list[str]:
    """Text of each token; empty ones are named as llama.cpp names them."""
    pieces = _texts(header, Words.TOKENS, _MOST_TOKENS)
    return [piece or f"[EMPTY_{n}]" for n, piece in enumerate(pieces)]


def _texts(header: Header, key: str, most: int) -> list[str]:
    try:
        return _list(header, key).texts(most)
    except ValueError as error:
        raise CheckpointError(f"{header.path}: {key} holds {error}: {_REMEDY}") from None


def _numbers(header: Header, key: str, count: int, default: float) -> list[float]:
    """So many numbers; `default` for each where there is no such key."""
    if key not in header.values:
        return [default] * count
    try:
        numbers = _list(header, key).numbers()
    except ValueError as error:
        raise CheckpointError(f"{header.path}: {key} holds {error}: {_REMEDY}") from None
    if len(numbers) != count:
        raise CheckpointError(
            f"{header.path}: {key} has {len(numbers)} entries for {count} tokens: {_REMEDY}"
        )
    return numbers


def _list(header: Header, key: str) -> Array:
    value = header.values.get(key)
    if not isinstance(value, Array):
        raise CheckpointError(f"{header.path} has no list {key}: {_REMEDY}")
    return value


def _refused(header: Header, what: str) -> TokenizerError:
    return TokenizerError(f"{header.path}: {what} is not supported: {_REMEDY}")

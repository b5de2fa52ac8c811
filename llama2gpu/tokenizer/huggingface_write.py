"""Writing Hugging Face's tokenizer.json, through the tokenizers library."""

from typing import TYPE_CHECKING

from llama2gpu.tokenizer.export_parts import refuse, score_pairs
from llama2gpu.tokenizer.sentencepiece import SPACE
from llama2gpu.vocabulary import MergedVocabulary, PieceType, ScoredVocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library


def tokenizer_json(vocabulary: ScoredVocabulary | MergedVocabulary) -> bytes:
    """The file. Raises `TokenizerError` for what could not give the same tokens."""
    of_scores = isinstance(vocabulary, ScoredVocabulary)
    library = _scored(vocabulary) if of_scores else _merged(vocabulary)
    _add_special(library, vocabulary)
    if any(library.token_to_id(piece) != id for id, piece in enumerate(vocabulary.pieces)):
        refuse("two of its tokens are spelled alike")
    return library.to_str(pretty=True).encode()


def _scored(vocabulary: ScoredVocabulary) -> "Library":
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, normalizers

    if vocabulary.trims_spaces:
        refuse("it drops spaces at the ends of a text")
    pieces = vocabulary.pieces
    unknown = [n for n, kind in enumerate(vocabulary.types) if kind == PieceType.UNKNOWN]
    library = Library(
        models.BPE(
            vocab={piece: id for id, piece in enumerate(pieces)},
            merges=score_pairs(vocabulary),
            unk_token=pieces[unknown[0]] if unknown else None,
            fuse_unk=True,
            byte_fallback=PieceType.BYTE in vocabulary.types,
        )
    )
    mark, prefix = normalizers.Replace(" ", SPACE), vocabulary.space_prefix
    steps = [normalizers.Prepend(SPACE), mark] if prefix else [mark]
    library.normalizer = normalizers.Sequence(steps)
    back = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    library.decoder = decoders.Sequence([*back, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    return library


def _merged(vocabulary: MergedVocabulary) -> "Library":
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Library

    pairs = [merge.split(" ") for merge in vocabulary.merges]
    library = Library(
        models.BPE(
            vocab={piece: id for id, piece in enumerate(vocabulary.pieces)},
            merges=[(left, right) for left, right in pairs],
            ignore_merges=vocabulary.whole_words,
        )
    )
    words = [pre_tokenizers.Split(Regex(word), "isolated") for word in vocabulary.words]
    letters = pre_tokenizers.ByteLevel(add_prefix_space=vocabulary.space_prefix, use_regex=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([*words, letters])
    library.decoder = decoders.ByteLevel()
    return library


def _add_special(library: "Library", vocabulary: ScoredVocabulary | MergedVocabulary) -> None:
    """Tokens that stay whole in a text, by id, and BOS before it."""
    from tokenizers import AddedToken, processors

    def of(*kinds: PieceType) -> list[AddedToken]:
        found = zip(vocabulary.pieces, vocabulary.types, strict=True)
        return [AddedToken(piece, normalized=False) for piece, kind in found if kind in kinds]

    library.add_special_tokens(of(PieceType.CONTROL, PieceType.UNKNOWN))
    library.add_tokens(of(PieceType.USER_DEFINED))
    if vocabulary.adds_bos and vocabulary.bos_id is not None:
        bos = vocabulary.pieces[vocabulary.bos_id]
        library.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos}:1 $B:1",
            special_tokens=[(bos, vocabulary.bos_id)],
        )

"""What the writers of tokenizers share: the ways to join pieces, and how they refuse."""

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from llama2gpu.errors import TokenizerError
from llama2gpu.vocabulary import PieceType, ScoredVocabulary


def refuse(what: str) -> NoReturn:
    """Raises what a tokenizer is that can't be written."""
    raise TokenizerError(f"the tokenizer can't be written in another format: {what}")


def pairs_of(ranks: Mapping[Any, int]) -> Iterator[tuple[Any, Any]]:
    """All ways to join two pieces into a third, the third in the order given."""
    for piece in ranks:
        cuts = ((piece[:n], piece[n:]) for n in range(1, len(piece)))
        found = [cut for cut in cuts if cut[0] in ranks and cut[1] in ranks]
        yield from sorted(found, key=lambda cut: (ranks[cut[0]], ranks[cut[1]]))


def score_pairs(vocabulary: ScoredVocabulary) -> list[tuple[str, str]]:
    """Merges that give the same tokens as the scores do, best first."""
    normal = [
        (-score, piece)
        for piece, score, kind in zip(
            vocabulary.pieces, vocabulary.scores, vocabulary.types, strict=True
        )
        if kind == PieceType.NORMAL
    ]
    normal.sort(key=lambda entry: entry[0])
    ranks = {piece: n for n, (_, piece) in enumerate(normal)}
    costs = {piece: cost for cost, piece in normal}
    pairs = list(pairs_of(ranks))
    made = list(dict.fromkeys(a + b for a, b in pairs))
    if any(costs[a] == costs[b] for a, b in zip(made, made[1:], strict=False)):
        refuse("two of its pieces have one score")
    return pairs

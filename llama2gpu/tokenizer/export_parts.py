"""What the writers of tokenizers share: the ways to join pieces, and how they refuse."""

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from llama2gpu.errors import TokenizerError


def refuse(what: str) -> NoReturn:
    """Raises what a tokenizer is that can't be written."""
    raise TokenizerError(f"the tokenizer can't be written in another format: {what}")


def pairs_of(ranks: Mapping[Any, int]) -> Iterator[tuple[Any, Any]]:
    """All ways to join two pieces into a third, the third in the order given."""
    for piece in ranks:
        cuts = ((piece[:n], piece[n:]) for n in range(1, len(piece)))
        found = [cut for cut in cuts if cut[0] in ranks and cut[1] in ranks]
        yield from sorted(found, key=lambda cut: (ranks[cut[0]], ranks[cut[1]]))

"""What the writers of tokenizers share: the ways to join pieces, and how they refuse."""

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from llama2gpu.errors import TokenizerError


def refuse(what: str) -> NoReturn:
    """Raises what a tokenizer is that can't be written."""
    raise TokenizerError(f"the tokenizer can't be written in another format: {what}")


def pairs_of(ranks: Mapping[Any, int]) -> Iterator[tuple[Any, Any]]:
    """All ways to join two pieces into a third, the third in the order given."""
    lengths = {len(piece) for piece in ranks}  # a piece of a megabyte is not cut everywhere
    for piece in ranks:
        size = len(piece)
        places = (n for n in range(1, size) if n in lengths and size - n in lengths)
        cuts = ((piece[:n], piece[n:]) for n in places)
        found = [cut for cut in cuts if cut[0] in ranks and cut[1] in ranks]
        yield from sorted(found, key=lambda cut: (ranks[cut[0]], ranks[cut[1]]))

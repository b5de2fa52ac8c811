"""Who holds which page of the cache, and which tokens lie on it."""

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import takewhile
from operator import eq
from typing import NamedTuple

import numpy as np

#: What the first page of any sequence stands behind.
ROOT = b""


class Content(NamedTuple):
    """Tokens on a page, from its first slot on, and the `digest` of all that is before them."""

    before: bytes
    tokens: tuple[int, ...]


class Pages:
    """The pages of a cache: held by any number of sequences, or free.

    A page whose content is known keeps it when it is freed, to be held again; whoever needs pages
    gets those without any first, lowest first, then those that were freed the longest ago.
    page: tokens of a page.
    """

    def __init__(self, page: int) -> None:
        self.page = page
        self.holders: list[int] = []
        self._blank: list[int] = []  # highest first
        self._kept: dict[int, None] = {}  # the longest free first
        self._content: dict[int, Content] = {}
        self._behind: dict[bytes, dict[int, tuple[int, ...]]] = {}

    @property
    def free(self) -> int:
        """Pages that nobody holds."""
        return len(self._blank) + len(self._kept)

    def add(self, count: int) -> None:
        """So many blank pages more."""
        first = len(self.holders)
        self.holders += [0] * count
        self._blank = [*reversed(range(first, first + count)), *self._blank]

    def take(self, count: int) -> list[int]:
        """Hands out free pages, in order; `free` says how many there are."""
        while len(self._blank) < count:
            self.forget([next(iter(self._kept))])
        taken = [self._blank.pop() for _ in range(count)]
        for page in taken:
            self.holders[page] = 1
        return taken

    def hold(self, page: int) -> None:
        """Hands out a page to one more holder, for what is on it."""
        self.holders[page] += 1
        self._kept.pop(page, None)

    def give_back(self, pages: Sequence[int]) -> None:
        """Takes pages back from one holder; the last ones are to be used for others first."""
        for page in reversed(pages):
            self.holders[page] -= 1
            if self.holders[page] == 0 and page in self._content:
                self._kept[page] = None
            elif self.holders[page] == 0:
                self._blank.append(page)
        self._blank.sort(reverse=True)

    def hold_only(self, pages: Iterable[int]) -> None:
        """Counts holders anew: each page is held as often as it is named."""
        holders = [0] * len(self.holders)
        for page in pages:
            holders[page] += 1
        self.holders = holders
        known = dict.fromkeys([*self._kept, *self._content])
        self._kept = {p: None for p in known if p in self._content and not holders[p]}
        self._blank = [p for p, n in enumerate(holders) if not n and p not in self._content]
        self._blank.reverse()

    def know(self, page: int, content: Content) -> None:
        """Remembers what lies on a held page, unless another page has it already."""
        if self.find(content)[1] < len(content.tokens):
            self.forget([page])
            self._content[page] = content  # first: what is behind must always be forgotten again
            self._behind.setdefault(content.before, {})[page] = content.tokens

    def forget(self, pages: Iterable[int]) -> None:
        """Drops what is known of pages; free ones are blank then."""
        for page in pages:
            content = self._content.get(page)
            if content is None:
                continue
            behind = self._behind.get(content.before, {})
            behind.pop(page, None)
            if not behind:
                self._behind.pop(content.before, None)
            del self._content[page]
            if page in self._kept:
                del self._kept[page]
                self._blank.append(page)
                self._blank.sort(reverse=True)

    def unsure(self, pages: Iterable[int]) -> list[int]:
        """Those of pages with one holder that are not full of known tokens."""
        return [
            p
            for p in pages
            if self.holders[p] == 1
            and (p not in self._content or len(self._content[p].tokens) < self.page)
        ]

    def find(self, wanted: Content) -> tuple[int, int]:
        """The page that begins with most of these tokens, and with how many; 0 is none."""
        best = (-1, 0)
        for page, tokens in self._behind.get(wanted.before, {}).items():
            if (count := common(tokens, wanted.tokens)) > best[1]:
                best = (page, count)
        if best[0] in self._kept:
            self._kept[best[0]] = self._kept.pop(best[0])  # it is of use yet
        return best


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    return sum(takewhile(bool, map(eq, a, b)))


def digest(before: bytes, tokens: Sequence[int]) -> bytes:
    """Names all tokens up to the end of a page: those before it, by their digest, and its own."""
    return blake2b(before + np.array(tokens, np.int64).tobytes(), digest_size=16).digest()

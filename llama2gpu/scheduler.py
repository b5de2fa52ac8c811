"""Who runs, who waits, and what each sequence adds in a step.

First come, first served: who waits joins in order, once there are pages for what it has and may
soon need, and prompts are taken in that order too. Where the pages run out, the last who came is
preempted: it waits first in line and goes on from what it has written.
"""

import contextlib
from collections import deque
from itertools import islice

from llama2gpu.batch import Span
from llama2gpu.cache import KVCache
from llama2gpu.errors import ContextError, RequestError
from llama2gpu.pace import Pace
from llama2gpu.pages import ROOT, Content, common, digest
from llama2gpu.request import Request, Sequence

#: Pages are reserved for so many tokens to come at most, and again when these are used up.
RESERVE = 1024


class Scheduler:
    """The sequences of an engine, and their pages.

    bounded: the cache never grows. share: sequences that begin alike share what is cached.
    ahead: steps at most that are launched beyond the one whose tokens are read.
    reused: prompt tokens that were found in the cache so far. preempted: how often a sequence had
    to make room for an older one.
    """

    def __init__(
        self,
        cache: KVCache,
        pace: Pace,
        context: int,
        *,
        max_sequences: int,
        bounded: bool,
        share: bool,
        recompute: bool,
        ahead: int,
    ) -> None:
        self.cache, self.pace, self.context, self.ahead = cache, pace, context, ahead
        self.max_sequences, self.bounded = max_sequences, bounded
        self.share, self.recompute = share and not recompute, recompute
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self.reused = self.preempted = 0

    def add(self, sequence: Sequence) -> None:
        """Lets a sequence wait. Raises `ContextError` where the cache can never hold it."""
        sequence.room = min(sequence.room, self.room(sequence.request))
        if sequence.reason is None:
            self.waiting.append(sequence)

    def room(self, request: Request) -> int:
        """Tokens that an answer may have. Raises `ContextError` where it may not have enough."""
        prompt, asked = len(request.prompt), request.params.max_tokens
        room = self.context - prompt + 1  # the last token needs no place
        held = self.cache.pages * self.cache.page
        if self.bounded and held - prompt + 1 < (1 if asked is None else min(asked, room)):
            raise ContextError(
                f"prompt and answer take {prompt + (asked or 0)} tokens but the cache holds "
                f"{held}: shorten the prompt, or ask for fewer tokens (--max-tokens)"
            )
        return min(room, held - prompt + 1) if self.bounded else room

    def admit(self) -> None:
        """Moves who waits to who runs, with pages for each; the cache grows once."""
        joining, missing = [], 0
        for s in islice(self.waiting, max(self.max_sequences - len(self.running), 0)):
            self._find(s)
            wanted = self.cache.pages_for(self._reserve(s)) - len(s.pages)
            if self.bounded and missing + wanted > self.cache.free_pages:
                self._lose(s)
                break
            missing += wanted
            joining.append(s)
        if joining and missing > self.cache.free_pages:
            with contextlib.suppress(RequestError):  # then some may have their pages yet
                self.cache.grow(missing - self.cache.free_pages)
        for s in joining:
            like = self._find(s)
            self._hold(s, self._reserve(s))
            self._copy(s, *like)
            self.running.append(s)
            self.waiting.popleft()
        if joining:
            self.sweep()

    def looping(self) -> list[Sequence]:
        """Who may decode on the device's own: all who run, or who is to catch up with a prompt."""
        decoding = [s for s in self.running if s.decoding]
        return decoding if self.pace.resting else self.running

    def plan(self) -> dict[Sequence, Span]:
        """What each sequence adds in this step, in running order."""
        for s in self.running:
            s.settle()
        left = self.pace.tokens(sum(s.decoding for s in self.running))
        spans: dict[Sequence, Span] = {}
        ahead: list[Sequence] = []  # whose prompts are not done yet
        for s in self.running:
            if self.recompute or s.decoding:
                count = 1
            else:
                count = self._prompt(s, left, ahead)
                left -= count
                ahead.append(s)
            start, end = (0, len(s.tokens)) if self.recompute else (s.cached, s.cached + count)
            if count and self._has_room(s, end):
                spans[s] = Span(s.pages, start, end - start)
        self.sweep()
        return spans

    def publish(self, sequence: Sequence) -> None:
        """Lets others share what a sequence has cached.

        A number drawn from it shows that it is made of numbers: attention has read all of it.
        """
        if not self.share or sequence.first_token_at is None or sequence.error is not None:
            return
        page = self.cache.page
        held = len(sequence.pages) * page  # none where it was interrupted in its release
        end = min(sequence.cached, len(sequence.tokens) - 1, held)
        for n in range(self.cache.pages_for(end)):
            tokens = sequence.tokens[n * page : min((n + 1) * page, end)]
            self.cache.book.know(sequence.pages[n], Content(_before(sequence, n, page), (*tokens,)))

    def sweep(self) -> None:
        """Frees the pages of sequences that have ended."""
        for s in self.running:
            if s.reason is not None:
                self._release(s)
        self.running = [s for s in self.running if s.reason is None]
        self.waiting = deque(s for s in self.waiting if s.reason is None)

    def restore(self) -> None:
        """Makes all whole again after an interruption: those who run hold what they have."""
        self.waiting = deque(s for s in self.waiting if s not in self.running)
        for s in self.waiting:
            s.pages, s.cached = [], 0
        self.cache.book.hold_only(page for s in self.running for page in s.pages)

    def _reserve(self, sequence: Sequence) -> int:
        """Tokens that a sequence is to have pages for: its own, and some that are to come."""
        return len(sequence.tokens) + min(sequence.left, RESERVE) - 1

    def _has_room(self, sequence: Sequence, tokens: int) -> bool:
        """Gives a sequence pages where it needs more; False where there are none for it now."""
        page = self.cache.page
        while sequence.reason is None and tokens > (held := len(sequence.pages)) * page:
            wanted = self._reserve(sequence)
            if self.bounded:
                if not self.cache.free_pages:
                    self._preempt()
                    if sequence not in self.running:
                        return False
                wanted = min(wanted, (held + self.cache.free_pages) * page)
            self._hold(sequence, wanted)
        return sequence.reason is None

    def _preempt(self) -> None:
        """Takes the pages of who came last; it is first in line again."""
        last = self.running[-1]
        self.waiting.appendleft(last)  # first: nobody is lost where this is interrupted
        self.running.pop()
        self._release(last)
        last.cached = 0
        self.preempted += 1

    def _hold(self, sequence: Sequence, tokens: int) -> None:
        """Gives a sequence the pages for so many tokens, or ends it where there is no memory."""
        missing = self.cache.pages_for(tokens) - len(sequence.pages)
        try:
            if missing > self.cache.free_pages:
                self.cache.grow(missing - self.cache.free_pages)
            sequence.pages += self.cache.take(max(missing, 0))
        except RequestError as error:
            sequence.fail(error)

    def _prompt(self, sequence: Sequence, left: int, ahead: list[Sequence]) -> int:
        """Tokens of its prompt that a sequence takes, `left` at most.

        It waits for a page that it can share with one of those ahead.
        """
        page = self.cache.page
        if not left:
            return 0
        if self.share:
            like = self._find(sequence)
            if any(common(s.tokens, sequence.tokens) - sequence.cached >= page for s in ahead):
                return 0
            self._copy(sequence, *like)
        return min(len(sequence.tokens) - sequence.cached, left)

    def _find(self, sequence: Sequence) -> tuple[int, int]:
        """Shares the full pages that the cache has of the tokens to come, but for the last one.

        Returns the page that begins with most of those behind them, and with how many: it goes on
        otherwise, or is to be written, and so can't be shared.
        """
        page, book, s = self.cache.page, self.cache.book, sequence
        while self.share and (n := s.cached // page) <= len(s.pages):
            end = min((n + 1) * page, len(s.tokens) - 1)
            found, count = book.find(Content(_before(s, n, page), (*s.tokens[n * page : end],)))
            if count < page:
                return found, count
            book.hold(found)
            blank, s.pages[n:] = s.pages[n : n + 1], [found, *s.pages[n + 1 :]]
            book.give_back(blank)
            self._skip(s, (n + 1) * page)
        return -1, 0

    def _copy(self, sequence: Sequence, found: int, count: int) -> None:
        """Copies a page as far as it was found to be of use, where a quarter of it is."""
        page, n = self.cache.page, sequence.cached // self.cache.page
        if 4 * (n * page + count - sequence.cached) < page or n >= len(sequence.pages):
            return
        if found in sequence.pages:  # it was handed out as a blank one since
            i = sequence.pages.index(found)
            sequence.pages[i], sequence.pages[n] = sequence.pages[n], found
        else:
            self.cache.copy(found, sequence.pages[n], count)
        self._skip(sequence, n * page + count)

    def _skip(self, sequence: Sequence, cached: int) -> None:
        """Goes on behind what was found."""
        self.reused += cached - sequence.cached
        sequence.cached = cached

    def _lose(self, sequence: Sequence) -> None:
        """Lets go of what was found."""
        if sequence.pages:
            self.cache.give_back(sequence.pages)
            self.reused -= sequence.cached
            sequence.pages, sequence.cached = [], 0

    def _release(self, sequence: Sequence) -> None:
        """Takes a sequence's pages, and wipes what nobody knows to be made of numbers."""
        self.publish(sequence)
        doubtful = sequence.cached > 0 and sequence.first_token_at is None
        if doubtful or sequence.error is not None:
            unsure = self.cache.book.unsure(sequence.pages)
            self.cache.book.forget(unsure)
            self.cache.wipe(unsure)
        elif self.ahead:
            self._wipe_end(sequence)
        self.cache.give_back(sequence.pages)
        sequence.pages = []

    def _wipe_end(self, sequence: Sequence) -> None:
        """Wipes where steps may have written behind a sequence's last token."""
        page, start = self.cache.page, sequence.cached
        for n in range(start // page, (start + self.ahead) // page + 1):
            unsure = self.cache.book.unsure(sequence.pages[n : n + 1])
            self.cache.wipe(unsure, max(start - n * page, 0))


def _before(sequence: Sequence, pages: int, page: int) -> bytes:
    """The digest of a sequence's tokens on its first so many pages."""
    digests = sequence.digests
    for n in range(len(digests), pages):
        tokens = sequence.tokens[n * page : (n + 1) * page]
        digests.append(digest(digests[-1] if digests else ROOT, tokens))
    return digests[pages - 1] if pages else ROOT

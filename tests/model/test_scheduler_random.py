"""Any coming and going, and Control-C at any line of the bookkeeping: all is in order after it."""

import sys
from collections.abc import Sequence as Seq
from types import FrameType
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2gpu import scheduler
from llama2gpu.pages import ROOT, Content, Pages
from llama2gpu.request import Sequence
from tests.model.test_scheduler import (
    SYSTEM,
    Asked,
    all_is_free,
    alone,
    engine_of,
    finish,
    ids,
    request,
)

ASKED: st.SearchStrategy[Asked] = st.tuples(
    st.builds(
        lambda shared, own: (*SYSTEM[:shared], *own),
        st.sampled_from([0, 0, 3, 16, 31, 32, 40]),
        st.lists(st.integers(0, 60), min_size=1, max_size=20).map(tuple),
    ),
    st.integers(1, 25),
    st.sampled_from([0.0, 1.0]),
)
#: A request that arrives, one that is cancelled, or some steps.
EVENTS = st.lists(
    st.one_of(ASKED, ASKED, st.integers(0, 20).map(lambda n: ("cancel", n)), st.integers(1, 9)),
    min_size=1,
    max_size=24,
)


@pytest.mark.parametrize("way", ["torch", "numpy", "one ahead", "padded, two ahead", "captured"])
@settings(deadline=None, max_examples=40)
@given(
    events=EVENTS,
    page=st.sampled_from([1, 4, 16, 64]),
    slack=st.sampled_from([None, 0, 3, 40]),
    chunk=st.sampled_from([1, 7, 30, 512]),
    most=st.integers(1, 6),
    seed=st.integers(0, 9),
)
def test_any_coming_and_going(
    way: str, events: list[Any], page: int, slack: int | None, chunk: int, most: int, seed: int
) -> None:
    """Everyone's text is their own, all pages come back, and every step brings somebody on."""
    pages = None if slack is None else -(-84 // page) + slack
    come_and_go(way, events, page, pages, chunk, most, seed)


@pytest.mark.parametrize("way", ["torch", "padded, two ahead"])
@settings(deadline=None, max_examples=40)
@given(
    asked=st.lists(ASKED, min_size=4, max_size=6),
    later=EVENTS,
    page=st.sampled_from([1, 4, 16]),
    chunk=st.sampled_from([7, 512]),
    reserve=st.sampled_from([1, 5]),
    seed=st.integers(0, 9),
)
def test_too_few_pages_for_all(
    way: str, asked: list[Any], later: list[Any], page: int, chunk: int, reserve: int, seed: int
) -> None:
    """The same where those who run can't all end beside each other."""
    longest = max(len(a[0]) + a[1] - 1 for a in [*asked, *later] if is_asked(a))
    with patch.object(scheduler, "RESERVE", reserve):
        come_and_go(way, [*asked, 3, *later], page, -(-longest // page), chunk, 6, seed)


def is_asked(event: Any) -> bool:
    return isinstance(event, tuple) and event[0] != "cancel"


def come_and_go(
    way: str, events: list[Any], page: int, pages: int | None, chunk: int, most: int, seed: int
) -> None:
    engine = engine_of(way, seed, page=page, max_pages=pages, chunk=chunk, max_sequences=most)
    added: list[tuple[Asked, Sequence]] = []
    started: list[Sequence] = []
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += engine.busy
        engine.step()
        started.extend(s for s in engine.running if s not in started)
        held = [page for s in engine.running for page in s.pages]
        assert [held.count(p) for p in range(engine.cache.pages)] == engine.cache.book.holders
        assert pages is None or engine.cache.pages == pages

    for event in events:
        if isinstance(event, int):
            for _ in range(event):
                step()
        elif event[0] == "cancel":
            if added:
                engine.cancel(added[event[1] % len(added)][1])
        else:
            added.append((event, engine.add(request(event))))
    while engine.busy:
        step()
    assert all_is_free(engine)
    for asked, s in added:
        assert s.error is None
        assert ids(s) == alone(asked)[: len(s.output)]
        assert s.reason == "cancelled" or len(s.output) == asked[1]
    order = [s for _, s in added if s in started]
    assert order == started
    tokens = sum(len(asked[0]) + asked[1] for asked, _ in added)
    again = engine.scheduler.preempted * 84  # tokens that may have been taken once more
    waits = 4 * (len(added) + engine.scheduler.preempted)
    assert steps <= tokens + again + waits + sum(e for e in events if isinstance(e, int))


OURS = ("scheduler", "pages", "engine", "request", "decoding", "sampling", "cache", "pace", "batch")


class Interrupting:
    """Raises Control-C at one of the lines of the bookkeeping; left: how many come before it."""

    def __init__(self, at: int, files: Seq[str] = OURS) -> None:
        self.left = at
        self.ours = tuple(f"llama2gpu/{file}.py" for file in files)

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:
        name = frame.f_code.co_filename
        own = name.endswith(self.ours)
        # what puts all in order again is not interrupted
        if not own or frame.f_code.co_name in ("restore", "hold_only", "_whole", "drop"):
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self


def test_pages_interrupted_at_any_line() -> None:
    """Counted anew, each page is held by who has it or free once, and found where it is known."""
    at, interrupted = 0, True
    while interrupted:
        at += 1
        book, held = Pages(2), list[int]()
        before, interrupting = sys.gettrace(), Interrupting(at, ("pages",))
        sys.settrace(interrupting)
        try:
            book.add(4)
            for n in range(7):  # the last ones take the place of what is known
                held = book.take(2)
                book.know(held[0], Content(ROOT, (n, n)))
                book.give_back(held)
                held = []
            book.hold(book.find(Content(ROOT, (6, 6)))[0])
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        interrupted = not interrupting.left
        book.hold_only(held)
        for n in range(7):
            page, count = book.find(Content(ROOT, (n, n)))
            assert not count or book._content[page].tokens == (n, n)
        assert book.free == book.holders.count(0)
        assert sorted([*held, *book.take(book.free)]) == [*range(len(book.holders))]
    assert at > 100


@pytest.mark.parametrize("way", ["torch", "padded, two ahead"])
@settings(deadline=None, max_examples=150)
@given(
    at=st.integers(1, 6000),
    max_pages=st.sampled_from([None, 8]),
    reserve=st.sampled_from([1, 1024]),
)
def test_interrupted_anywhere(way: str, at: int, max_pages: int | None, reserve: int) -> None:
    with patch.object(scheduler, "RESERVE", reserve):
        interrupt(way, at, max_pages)


def interrupt(way: str, at: int, max_pages: int | None) -> None:
    asked: Seq[Asked] = [((*SYSTEM[:35], n), 6 + n, 0.0) for n in range(5)]
    engine = engine_of(way, at, page=16, max_pages=max_pages, chunk=30)
    sequences = [engine.add(request(a)) for a in asked[:3]]
    left = engine.add(request(((*SYSTEM[:35], 8), 30, 0.0)))
    before, interrupting = sys.gettrace(), Interrupting(at)
    sys.settrace(interrupting)
    try:
        for _ in range(7):
            engine.step()
        engine.cancel(left)
        finish(engine)
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    engine.cancel(left)
    sequences += [engine.add(request(a)) for a in asked[3:]]
    finish(engine)
    assert all_is_free(engine)
    assert [ids(s) for s in sequences] == [alone(a) for a in asked]

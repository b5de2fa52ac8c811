"""Byte-pair merging: always the best neighbouring pair, the leftmost of equals."""

from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush

#: What two neighbouring ids merge into, as (cost, id), or None where they don't.
Join = Callable[[int, int], tuple[float, int] | None]

_GONE = -1


def merge(ids: Sequence[int], join: Join) -> list[int]:
    """Merges neighbours until no pair joins, the lowest cost first, leftmost among equals.

    A heap of candidates over a linked list: n log n for n ids, where a scan for each merge takes
    n squared. A candidate is stale where the ids that it saw are no longer there.
    """
    symbols = list(ids)
    end = len(symbols)
    before, after = list(range(-1, end - 1)), list(range(1, end + 1))
    heap: list[tuple[float, int, int, int, int]] = []
    for left in range(end - 1):
        if found := join(symbols[left], symbols[left + 1]):
            heap.append((found[0], left, found[1], symbols[left], symbols[left + 1]))
    heapify(heap)
    while heap:
        _, left, merged, first, second = heappop(heap)
        right = after[left]
        if right == end or symbols[left] != first or symbols[right] != second:
            continue
        symbols[left], symbols[right] = merged, _GONE
        after[left] = after[right]
        if after[left] < end:
            before[after[left]] = left
        for at in (before[left], left):
            if at >= 0 and (to := after[at]) < end and (found := join(symbols[at], symbols[to])):
                heappush(heap, (found[0], at, found[1], symbols[at], symbols[to]))
    return [symbol for symbol in symbols if symbol != _GONE]

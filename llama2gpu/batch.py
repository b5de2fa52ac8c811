"""Building the `Batch` of one step from what each sequence has cached and adds."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llama2gpu.backends.base import Batch


@dataclass(frozen=True)
class Span:
    """The new tokens of one sequence: positions start to start + count − 1, on its pages."""

    pages: Sequence[int]
    start: int
    count: int


def build_batch(
    spans: Sequence[Span], page: int, device: torch.device, *, spare: bool = False
) -> Batch:
    """The batch of these spans, in order; `page` is the page size in tokens.

    spare: the block table has all pages of each span, for tokens to come as well.
    """
    ends = tuple(span.start + span.count for span in spans)
    positions = [p for span in spans for p in range(span.start, span.start + span.count)]
    slots = [
        span.pages[p // page] * page + p % page
        for span in spans
        for p in range(span.start, span.start + span.count)
    ]
    starts = [0]
    for span in spans:
        starts.append(starts[-1] + span.count)
    used = [
        list(span.pages if spare else span.pages[: -(-end // page)])
        for span, end in zip(spans, ends, strict=True)
    ]
    width = max((len(pages) for pages in used), default=0)
    table = [pages + [0] * (width - len(pages)) for pages in used]

    def put(values: object, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    return Batch(
        positions=put(positions, torch.int64),
        slots=put(slots, torch.int64),
        starts=put(starts, torch.int32),
        lengths=put(ends, torch.int32),
        block_table=put(table, torch.int32).view(len(spans), width),
        new_counts=tuple(span.count for span in spans),
        cached_counts=ends,
    )

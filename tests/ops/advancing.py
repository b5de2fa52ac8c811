"""What readies the next step, whatever the kernel, against what it should leave."""

from collections.abc import Callable

import pytest
import torch

#: A launcher, with the arguments that Triton's has.
Advance = Callable[..., None]

every_count = pytest.mark.parametrize("counted", [True, False])
every_size = pytest.mark.parametrize("rows", [1, 3, 130, 300])


def check_advance(advance: Advance, place: torch.device, rows: int, counted: bool) -> None:
    random = torch.Generator().manual_seed(rows)
    page, width, vocab = 16, 4, 100
    positions = torch.randint(page * width - 1, (rows,), generator=random)
    positions[0] = 2 * page - 1
    table = torch.randperm(rows * width, generator=random).int().view(rows, width)
    drawn = torch.randint(vocab, (rows,), generator=random)
    lengths, draws = (positions + 1).int(), torch.arange(rows) + (1 << 33)
    generated = torch.randint(3, (rows, vocab), generator=random, dtype=torch.int32)
    found = [x.clone().to(place) for x in (positions, lengths, draws, generated)]
    tokens, slots = (torch.zeros(rows, dtype=torch.int64, device=place) for _ in range(2))
    advance(
        drawn=drawn.to(place),
        tokens=tokens,
        positions=found[0],
        lengths=found[1],
        draws=found[2],
        slots=slots,
        block_table=table.to(place),
        page=page,
        generated=found[3] if counted else None,
    )
    after, every = positions + 1, torch.arange(rows)
    if counted:
        generated[every, drawn] += 1
    for out, wanted in zip(found, (after, lengths + 1, draws + 1, generated), strict=True):
        assert torch.equal(out.cpu(), wanted)
    assert torch.equal(tokens.cpu(), drawn)
    assert torch.equal(slots.cpu(), table[every, after // page].long() * page + after % page)


def check_advance_past_the_table(advance: Advance, place: torch.device) -> None:
    """A token that nobody will read is written to a page that the sequence has."""
    tokens, positions, draws = (torch.tensor([x], device=place) for x in (0, 31, 0))
    lengths = torch.tensor([32], dtype=torch.int32, device=place)
    slots, table = torch.zeros_like(tokens), torch.tensor([[3, 5]], dtype=torch.int32)
    state = (tokens.clone(), tokens, positions, lengths, draws, slots, table.to(place))
    advance(*state, 16)
    assert slots.tolist() == [5 * 16]

"""From one step of decoding to the next, in torch: what every backend's `advance` does."""

import torch

from llama2gpu.ops.sample import SampleParams


def advance(
    drawn: torch.Tensor,
    tokens: torch.Tensor,
    positions: torch.Tensor,
    lengths: torch.Tensor,
    slots: torch.Tensor,
    block_table: torch.Tensor,
    page: int,
    params: SampleParams,
) -> None:
    """Readies S sequences, which take one token each, for their next step, in place.

    drawn int64 [S] becomes `tokens`; positions, lengths and `params.draw` grow by one; slots follow
    from the block table int32 [S, P], whose last page takes what is past its end;
    `params.generated` counts the token.
    """
    tokens.copy_(drawn)
    for counter in (positions, lengths, params.draw):
        counter += 1
    place = (positions // page).clamp(max=block_table.shape[1] - 1)
    slots.copy_(block_table.gather(1, place[:, None])[:, 0].long() * page + positions % page)
    if params.generated is not None:
        params.generated[torch.arange(len(drawn), device=drawn.device), drawn] += 1

"""Between two steps of decoding: what was drawn becomes the next step's input, on the device."""

import torch
import triton
import triton.language as tl

from llama2gpu.kernels.launch import Plan, launch
from llama2gpu.kernels.overlap import allow_next, wait_for_inputs


@triton.jit
def _advance_kernel(
    p_drawn, p_tokens, p_positions, p_lengths, p_draws, p_slots, p_table, p_generated,
    count, width, PAGE: tl.constexpr, VOCAB: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """A block of sequences, each a token further."""
    allow_next(PDL)
    wait_for_inputs(PDL)
    o_s = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_s = o_s < count
    token = tl.load(p_drawn + o_s, mask=m_s, other=0)
    position = tl.load(p_positions + o_s, mask=m_s, other=0) + 1
    tl.store(p_tokens + o_s, token, mask=m_s)
    tl.store(p_positions + o_s, position, mask=m_s)
    tl.store(p_lengths + o_s, tl.load(p_lengths + o_s, mask=m_s, other=0) + 1, mask=m_s)
    tl.store(p_draws + o_s, tl.load(p_draws + o_s, mask=m_s, other=0) + 1, mask=m_s)
    place = tl.minimum(position // PAGE, width - 1)
    page = tl.load(p_table + o_s.to(tl.int64) * width + place, mask=m_s, other=0)
    tl.store(p_slots + o_s, page.to(tl.int64) * PAGE + position % PAGE, mask=m_s)
    if p_generated is not None:
        p_count = p_generated + o_s.to(tl.int64) * VOCAB + token
        tl.store(p_count, tl.load(p_count, mask=m_s, other=0) + 1, mask=m_s)


def plan_advance(rows: int, page: int, vocab: int, pdl: bool = False) -> Plan:
    """A lane for each sequence."""
    block = min(128, triton.next_power_of_2(max(rows, 1)))
    constants = {"PAGE": page, "VOCAB": vocab, "BLOCK": block, "PDL": pdl}
    return Plan((triton.cdiv(rows, block),), constants, max(1, block // 32), pdl=pdl)


def advance(
    drawn: torch.Tensor,
    tokens: torch.Tensor,
    positions: torch.Tensor,
    lengths: torch.Tensor,
    draws: torch.Tensor,
    slots: torch.Tensor,
    block_table: torch.Tensor,
    page: int,
    generated: torch.Tensor | None = None,
    *,
    pdl: bool = False,
) -> None:
    """Readies S sequences for their next step: see `ops.advance`; draws: `SampleParams.draw`."""
    rows, vocab = len(drawn), 1 if generated is None else generated.shape[1]
    launch(
        _advance_kernel, plan_advance(rows, page, vocab, pdl), p_drawn=drawn, p_tokens=tokens,
        p_positions=positions, p_lengths=lengths, p_draws=draws, p_slots=slots, p_table=block_table,
        p_generated=generated, count=rows, width=block_table.shape[1],
    )  # fmt: skip

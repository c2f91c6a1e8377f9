"""Tokens that leave the heads of rows that evict while decoding: which ones, and what becomes of their slots.

Shape suffixes: B rows, U KV heads, C slots (padded to the longest segment), n tokens that leave a head at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvbench.methods.slots import Slots
from kvbench_kernels.backends import Buffers


def worth_least(s: Slots, worth_BUC: Tensor, counts_BU: Tensor) -> Tensor:
    """Return a mask of the tokens worth least, `counts_BU` of each head; of equals, the latest."""
    # protected tokens are the last to leave, but empty slots do not leave at all
    worth_BUC = worth_BUC.clamp(max=torch.finfo(worth_BUC.dtype).max).masked_fill(~s.live_BUC, torch.inf)
    latest_BUC = s.pos_BUC.argsort(-1, descending=True)
    order_BUC = latest_BUC.gather(-1, worth_BUC.gather(-1, latest_BUC).argsort(dim=-1, stable=True))
    columns_C = torch.arange(order_BUC.shape[-1], device=order_BUC.device)
    first_BUC = (columns_C < counts_BU[..., None]).expand_as(order_BUC)
    return torch.zeros_like(s.live_BUC).scatter_(-1, order_BUC, first_BUC)


def into_holes(
    gone_BUC: Tensor, live_BUC: Tensor, length_BU: Tensor, count_BU: Tensor, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return which tokens move where, so that the tokens of each head that stay are its first ones again.

    Args:
        length_BU: tokens of each head before any leave.
        count_BU: those that leave each head, `most` at most.

    Returns:
        The slots to move to and to move from [B, U, n], the last one where nothing moves, and the slots that end.
    """
    width = gone_BUC.shape[-1]
    columns_C = torch.arange(width, device=gone_BUC.device)
    new_BU1 = (length_BU - count_BU)[..., None]
    holes_BUC = gone_BUC & (columns_C < new_BU1)
    movers_BUC = live_BUC & ~gone_BUC & (columns_C >= new_BU1)
    hole_BUn, mover_BUn = (
        torch.where(x_BUC, columns_C, width).sort(-1).values[..., :most] for x_BUC in (holes_BUC, movers_BUC)
    )
    last_BU1 = (length_BU - 1).clamp(min=0)[..., None]
    moves_BUn = hole_BUn < width
    past_BUn = new_BU1 + torch.arange(most, device=columns_C.device)
    to_BUn, source_BUn = (torch.where(moves_BUn, x_BUn, last_BU1) for x_BUn in (hole_BUn, mover_BUn))
    return to_BUn, source_BUn, torch.minimum(past_BUn, last_BU1)


def copy_tokens(to: Tensor, source: Tensor, buffers: Sequence[Tensor]) -> None:
    """Copy rows of buffers to other rows. All are read before any is written."""
    for x in buffers:
        x.index_copy_(0, to, x.index_select(0, source))


def move_tokens(s: Slots, to_BUn: Tensor, source_BUn: Tensor, buffers: Buffers, start_BU: Tensor) -> None:
    """Copy tokens from slots to slots of the same head, with what a policy knows of them."""
    to, source = ((start_BU[..., None] + x).flatten() for x in (to_BUn, source_BUn))
    copy_tokens(to, source, (buffers.k_RD, buffers.v_RD))
    for x_BUC in (s.pos_BUC, s.state_BUC, *(() if s.pinned_BUC is None else (s.pinned_BUC,))):
        x_BUC.scatter_(2, to_BUn, x_BUC.gather(2, source_BUn))


def end_slots(slot: Tensor, ends: Tensor, buffers: Buffers) -> None:
    """Let queries see slots no more where `ends`, in arenas with a bias."""
    if buffers.bias_R is not None:
        bias = torch.where(ends, -torch.inf, buffers.bias_R[slot]).to(buffers.bias_R.dtype)
        buffers.bias_R.index_copy_(0, slot, bias)

"""Parts of the values, and keys, of tokens that leave while generating, for tokens that stay.

Shape suffixes: B rows of one policy, U KV heads, C slots, N tokens that leave, M tokens that take over something.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kvbench.methods.slots import LATER


@dataclass(frozen=True)
class Leaving:
    """The tokens that leave after a step, those of each head in the order of their positions.

    Attributes:
        column_BUN: int64, their slots.
        due_BUN: True for tokens that leave. Heads lose different numbers of them; their other columns mean nothing.
        stays_BUC: True for slots whose tokens stay.
    """

    column_BUN: Tensor
    due_BUN: Tensor
    stays_BUC: Tensor

    @classmethod
    def of(cls, gone_BUC: Tensor, pos_BUC: Tensor, live_BUC: Tensor, most: int) -> Leaving:
        """Return the tokens of a mask, of which no head loses more than `most`."""
        gone_BUC = gone_BUC & live_BUC
        column_BUN = torch.where(gone_BUC, pos_BUC, LATER).argsort(-1)[..., :most]
        return cls(column_BUN, gone_BUC.gather(2, column_BUN), live_BUC & ~gone_BUC)

    @classmethod
    def of_one(cls, column_BU: Tensor, due_BU: Tensor, live_BUC: Tensor) -> Leaving:
        """Return the token in a column of each head, where one leaves."""
        columns_C = torch.arange(live_BUC.shape[2], device=live_BUC.device)
        gone_BUC = (columns_C == column_BU[..., None]) & due_BU[..., None]
        return cls(column_BU[..., None], due_BU[..., None], live_BUC & ~gone_BUC)

    def followers(self, pos_BUC: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return the slots [B, U, N, M] of the next `count` tokens by position that stay; True where there is one."""
        pos_BUN = pos_BUC.gather(2, self.column_BUN)
        if pos_BUN.shape[2] == 1:
            later_BUC = torch.where(self.stays_BUC & (pos_BUC > pos_BUN), pos_BUC, LATER)
            nearest = later_BUC.topk(min(count, later_BUC.shape[2]), largest=False)
            missing = 0, count - nearest.values.shape[2]
            into_BUM, pos_BUM = F.pad(nearest.indices, missing), F.pad(nearest.values, missing, value=LATER)
            return into_BUM[:, :, None], (pos_BUM < LATER)[:, :, None]
        sorted_BUC, order_BUC = torch.where(self.stays_BUC, pos_BUC, LATER).sort(-1)
        first_BUN = torch.searchsorted(sorted_BUC, pos_BUN.contiguous())
        place_BUNM = first_BUN[..., None] + torch.arange(count, device=pos_BUC.device)
        inside_BUNM = place_BUNM < pos_BUC.shape[2]
        place_BUX = place_BUNM.clamp(max=pos_BUC.shape[2] - 1).flatten(2)
        into_BUNM, pos_BUNM = (x.gather(2, place_BUX).view_as(place_BUNM) for x in (order_BUC, sorted_BUC))
        return into_BUNM, inside_BUNM & (pos_BUNM < LATER)


class Shares(NamedTuple):
    """Parts of the values, and keys, of tokens that leave, for tokens that stay.

    Attributes:
        into_BUNM: int64, slots whose tokens stay.
        value_BUNM: float32, the part of the leaving token's value that is added to the value in that slot; 0 for none.
        key_BUNM: the same of its key; None for none.
    """

    into_BUNM: Tensor
    value_BUNM: Tensor
    key_BUNM: Tensor | None = None

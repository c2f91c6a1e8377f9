"""CORM (Dai et al. 2024, arXiv 2404.15949): tokens leave that none of the last queries found important.

Shape suffixes: as in `kvbench.methods.decoding`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from kvbench.methods.decoding import DecodePolicy
from kvbench.methods.fields import check_at_least
from kvbench.methods.scores.replayed import Replayed
from kvbench.methods.slots import Slots


@dataclass(frozen=True)
class DropLongMinor(DecodePolicy):
    """A policy without a budget: each head drops any number of tokens.

    A query finds a token important if some query head of the group gives it at least an average share of its
    attention: 1 / n of a head that holds n tokens. A token that none of the last `history` queries found important
    leaves, unless it is one of the newest `recent` ones. The state is the position of the last query that did.
    """

    history: int = 256
    recent: int = 256
    reads: ClassVar[str] = "all"

    def __post_init__(self) -> None:
        check_at_least(self, "history", 1)
        check_at_least(self, "recent", 0)

    @property
    def score(self) -> Replayed:
        """The last important queries of the prompt; `recent` does not matter to them."""
        return Replayed(replace(self, recent=0))

    @property
    def asks(self) -> int:
        return self.history

    def limit(self, base_BU: Tensor, steps_B1: Tensor, layer: int, span_B1: Tensor) -> None:
        """Return None: `drop` decides how many tokens leave."""

    def observe(self, slots: Slots, weights_BUGTC: Tensor) -> None:
        """Bring the last important query of every token up to date."""
        ahead_T = torch.arange(1 - weights_BUGTC.shape[3], 1, device=slots.pos_BUC.device)
        seen_BUT = slots.live_BUC.sum(-1, keepdim=True) + ahead_T
        important_BUTC = (weights_BUGTC >= 1 / seen_BUT[:, :, None, :, None]).any(2)
        at_B1T1 = (slots.seen_B[:, None] - 1 + ahead_T)[:, None, :, None]
        slots.state_BUC.copy_(torch.where(important_BUTC, at_B1T1, -1).amax(2).float().maximum(slots.state_BUC))

    def drop(self, slots: Slots) -> Tensor:
        """Return a mask of the tokens that leave."""
        return (slots.state_BUC < (slots.seen_B - self.history)[:, None, None]) & ~slots.recent(self.recent)

"""A sliding window after attention sinks, while generating: StreamingLLM (Xiao et al. 2023, arXiv 2309.17453).

Shape suffixes: as in `kvbench.methods.decoding`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.methods.decoding import DecodePolicy
from kvbench.methods.fields import check_at_least
from kvbench.methods.slots import Slots


@dataclass(frozen=True)
class SlidingWindow(DecodePolicy):
    """A policy that drops the oldest token after the sinks. Positions stay as they are.

    A head that may hold no more tokens than there are sinks holds sinks alone: every later token is read in its own
    step, and then leaves.

    Args:
        sinks: first tokens of the sequence that always stay.
    """

    sinks: int = 4

    def __post_init__(self) -> None:
        check_at_least(self, "sinks", 0)

    def protects(self, tokens: int) -> int:
        """Return the sinks."""
        return self.sinks

    def drop(self, slots: Slots) -> Tensor:
        """Return the positions: older tokens are worth less, and sinks stay."""
        return slots.pos_BUC.float().masked_fill(slots.first(self.sinks), torch.inf)

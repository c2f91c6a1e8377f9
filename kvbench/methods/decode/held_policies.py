"""FastGen (Ge et al. 2023, arXiv 2310.01801) while generating: each head holds on to its policy.

Shape suffixes: as in `kvbench.methods.decoding`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvbench.methods.base import Score
from kvbench.methods.decoding import DecodePolicy, Start
from kvbench.methods.scores.column_sums import ColumnSums
from kvbench.methods.scores.groups import reduce_group
from kvbench.methods.slots import Slots, over_queries


@dataclass(frozen=True)
class HeldPolicies(DecodePolicy):
    """A policy that holds what `CheapestPolicy` chose for each head.

    Heads without frequent and local tokens store special tokens and punctuation alone. Local tokens slide. Of the
    others, the token leaves first that got the least attention per query since it arrived; all queries of the prompt
    count as one, with their mean. The newest token is read in its own step by every head, also where it is not stored.

    Args:
        sinks: first tokens of the sequence that never leave, those of the answer after a shorter prompt included.
    """

    sinks: int = 0
    reads: ClassVar[str] = "all"
    follows_plan: ClassVar[bool] = True

    @property
    def score(self) -> Score:
        """The attention accumulated over the prompt, whatever chose the tokens that stay."""
        return ColumnSums()

    def begin(self, start: Start) -> Tensor:
        """Return the mean attention of the prompt's queries to the kept tokens."""
        assert start.score_UC is not None
        return start.score_UC.float() / (start.span - start.pos_UC).clamp(min=1)

    def observe(self, slots: Slots, weights_BUGTC: Tensor) -> None:
        """Add the attention of the step."""
        slots.state_BUC += reduce_group(over_queries(weights_BUGTC), "mean", dim=2)

    def drop(self, slots: Slots) -> Tensor:
        """Return the mean attention, or the position in heads that rank no tokens; first and local tokens stay."""
        assert slots.numbers_BUX is not None
        policy_BU1, near_BU1 = slots.numbers_BUX[..., None].unbind(2)
        steps_BUC = slots.seen_B[:, None, None] - slots.pos_BUC.maximum(slots.span_B[:, None, None] - 1)
        mean_BUC = slots.state_BUC / steps_BUC.clamp(min=1)
        worth_BUC = torch.where(policy_BU1 >= 2, mean_BUC, slots.pos_BUC)
        return worth_BUC.masked_fill(slots.recent(near_BU1) | (slots.pos_BUC < self.sinks), torch.inf)

"""Heavy hitters and recent tokens while generating: H2O's own decode-time algorithm.

Shape suffixes: as in `kvbench.methods.decoding`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvbench.methods.base import Score
from kvbench.methods.decoding import DecodePolicy
from kvbench.methods.fields import check_one_of
from kvbench.methods.scores.column_sums import ColumnSums
from kvbench.methods.scores.groups import REDUCTIONS, reduce_group
from kvbench.methods.slots import Slots, over_queries
from kvbench.methods.window import check_window, window_tokens


@dataclass(frozen=True)
class AccumulateAndEvict(DecodePolicy):
    """A policy that keeps the tokens with most attention over all steps, and the most recent tokens.

    H2O (Zhang et al. 2023, arXiv 2306.14048): after every step the attention of the new tokens is added to each slot.
    Above the limit, the best of the non-recent tokens and the recent ones stay; without room for others, the latest.

    Args:
        window: recent tokens, or as a float their share of the limit.
        reduce: how the query heads of a KV head are combined (the paper has no groups): mean, max or sum.
    """

    window: int | float = 0.5
    reduce: str = "mean"
    reads: ClassVar[str] = "all"

    def __post_init__(self) -> None:
        check_window(self)
        check_one_of(self, "reduce", REDUCTIONS)

    @property
    def score(self) -> Score:
        """The attention accumulated over the prompt, whichever score chose the tokens that stay."""
        return ColumnSums(self.reduce)

    def protects(self, tokens: int) -> int:
        return window_tokens(self.window, tokens)

    def observe(self, slots: Slots, weights_BUGTC: Tensor) -> None:
        """Add the attention of the step."""
        slots.state_BUC += reduce_group(over_queries(weights_BUGTC), self.reduce, dim=2)

    def drop(self, slots: Slots) -> Tensor:
        """Return the accumulated attention; recent tokens stay."""
        assert slots.limit_BU is not None
        is_share = isinstance(self.window, float)
        window = (self.window * slots.limit_BU.double()).int()[..., None] if is_share else int(self.window)
        return slots.state_BUC.masked_fill(slots.recent(window), torch.inf)

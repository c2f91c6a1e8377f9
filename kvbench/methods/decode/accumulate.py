"""Heavy hitters and recent tokens while generating: H2O's own decode-time algorithm.

Shape suffixes: as in `kvbench.methods.base.DecodePolicy`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.methods.base import DecodePolicy
from kvbench.methods.fields import check_one_of
from kvbench.methods.scores.groups import REDUCTIONS, reduce_group
from kvbench.methods.window import check_window, window_tokens


@dataclass(frozen=True)
class AccumulateAndEvict(DecodePolicy):
    """A policy that keeps the tokens with most attention over all steps, and the most recent tokens.

    H2O (Zhang et al. 2023, arXiv 2306.14048): after the attention of every step the attention of the new tokens is
    added to each slot. Above the budget, the best of the non-recent slots and the recent ones stay. Accumulated
    attention travels with its token.

    Args:
        window: recent tokens, or as a float their share of the budget.
        reduce: how the query heads of a KV head are combined (the paper has no groups): mean, max or sum.
    """

    window: int | float = 0.5
    reduce: str = "mean"

    def __post_init__(self) -> None:
        check_window(self)
        check_one_of(self, "reduce", REDUCTIONS)

    def start(self, score_US: Tensor) -> Tensor:
        """Return the attention accumulated so far: the scores of the kept tokens."""
        return score_US.clone()

    def step(self, state_UR: Tensor, attention_UGTS: Tensor, tokens: int) -> tuple[Tensor, Tensor | None]:
        """Return the accumulated attention and the slots to keep (ascending; None: all)."""
        received_US = reduce_group(attention_UGTS.sum(-2), self.reduce, dim=-2).to(state_UR.dtype)
        received_US[..., : state_UR.shape[-1]] += state_UR
        slots = received_US.shape[-1]
        if slots <= tokens:
            return received_US, None
        old = slots - window_tokens(self.window, tokens)
        best = received_US[..., :old].argsort(dim=-1, descending=True, stable=True)
        heavy = best[..., : tokens - (slots - old)].sort(dim=-1).values
        recent = torch.arange(old, slots, device=heavy.device).expand(*heavy.shape[:-1], -1)
        keep = torch.cat([heavy, recent], dim=-1)
        return received_US.gather(-1, keep), keep

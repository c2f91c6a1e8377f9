"""Decode policies: what leaves the cache while generating, so that a budget holds all the time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kvbench.methods.dials import window_tokens
from kvbench.methods.scores import reduce_group


class DecodePolicy(Protocol):
    """State per KV head and what to evict after a step. Pure: the cache owns the state.

    Shape suffixes: U heads of equal length (or no such dimension), G query heads per KV head, T new tokens of the
    step, S slots after appending them, R slots before. Slots are a head's stored tokens by ascending position.
    """

    def start(self, score_US: Tensor) -> Tensor:
        """State after the prefill, from the scores of the kept tokens."""
        ...

    def step(self, state_UR: Tensor, attention_UGTS: Tensor, tokens: int) -> tuple[Tensor, Tensor | None]:
        """New state and the slots to keep (ascending; None: all), after the attention of the step."""
        ...


@dataclass(frozen=True)
class AccumulateAndEvict:
    """Heavy hitters by attention accumulated over all steps, and the most recent tokens.

    H2O's own decode-time algorithm (Zhang et al. 2023, arXiv 2306.14048): after the attention of every step the
    new tokens' attention is added to each slot; above the budget, the best of the non-recent slots and the
    recent ones stay. Accumulated attention travels with its token.

    Args:
        window: recent tokens, or as a float their share of the budget.
        reduce: how the query heads of a KV group are combined (the paper has no groups).
    """

    window: int | float = 0.5
    reduce: str = "mean"

    def start(self, score_US: Tensor) -> Tensor:
        return score_US.clone()

    def step(self, state_UR: Tensor, attention_UGTS: Tensor, tokens: int) -> tuple[Tensor, Tensor | None]:
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

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

    Shape suffixes: G query heads per KV head, T new tokens of the step, S slots of the head after appending them.
    Slots are the head's stored tokens by ascending position.
    """

    def start(self, score_S: Tensor) -> Tensor:
        """State of one head after the prefill, from the scores of its kept tokens."""
        ...

    def step(self, state: Tensor, attention_GTS: Tensor, tokens: int) -> tuple[Tensor, Tensor | None]:
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

    def start(self, score_S: Tensor) -> Tensor:
        return score_S.clone()

    def step(self, state: Tensor, attention_GTS: Tensor, tokens: int) -> tuple[Tensor, Tensor | None]:
        received = reduce_group(attention_GTS.sum(1), self.reduce, dim=0).to(state.dtype)
        received[: state.shape[0]] += state
        slots = received.shape[0]
        if slots <= tokens:
            return received, None
        recent = slots - window_tokens(self.window, tokens)
        heavy = received[:recent].argsort(descending=True, stable=True)[: tokens - (slots - recent)]
        keep = torch.cat([heavy.sort().values, torch.arange(recent, slots, device=heavy.device)])
        return received[keep], keep

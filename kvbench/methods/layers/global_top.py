"""Layer budgets by one threshold for the whole model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.methods.base import LayerBudget, LayerContext, Layers


@dataclass(frozen=True)
class GlobalTop(Layers):
    """The best candidates over all layers and heads, counted per layer; ties go to the lower layer and head.

    KVzip (Kim et al. 2025, arXiv 2505.23416) and Layer-DefensiveKV (arXiv 2510.13334). With `Adaptive(floor=0)` for the
    heads, exactly these candidates stay.
    """

    @property
    def needs_statistics(self) -> bool:
        """True: the threshold is that of all layers."""
        return True

    def statistic(self, ctx: LayerContext, score_UT: Tensor) -> Tensor:
        """Return the layer's scores."""
        return score_UT

    def __call__(self, budget: LayerBudget) -> list[int]:
        """Return the tokens of each layer, summed over its KV heads. Raises ValueError without all scores."""
        if budget.layers == 1:
            return [budget.tokens * budget.heads]
        score_LN = budget.stacked()[..., budget.sinks : budget.span - budget.window].flatten(1)
        best = score_LN.flatten().argsort(descending=True, stable=True)[: budget.free] // score_LN.shape[1]
        held = torch.bincount(best, minlength=budget.layers).tolist()
        return [count + budget.protected * budget.heads for count in held]

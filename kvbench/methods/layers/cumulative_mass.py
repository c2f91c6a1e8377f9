"""Layer budgets by accumulated attention: PrefixKV. Shape suffixes: L layers, T tokens, U KV heads."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kvbench.methods.base import LayerBudget, Layers
from kvbench.methods.context import LayerContext
from kvbench.methods.fields import check_allocation
from kvbench.methods.layer_profile import equal_mass_drops
from kvbench.methods.rounding import apportion


@dataclass(frozen=True)
class CumulativeMass(Layers):
    """Layer budgets that keep the same share of every layer's importance.

    PrefixKV (Wang et al. 2024, arXiv 2412.03409). Sort each layer's normalised scores; a binary search finds the mass
    p at which dropping the rest of every layer meets the budget to within 5 tokens; the drops are then scaled to the
    budget. The reference does this offline on calibration prompts, here it is done on the prompt itself.

    Args:
        allocation: exact scales by largest remainder, so that the budget is met; reference truncates.
    """

    allocation: str = "exact"

    def __post_init__(self) -> None:
        check_allocation(self)

    @property
    def needs_statistics(self) -> bool:
        return True

    def statistic(self, ctx: LayerContext, score_UT: Tensor) -> Tensor:
        """Return the layer's [T] importance, the mean score over its KV heads."""
        return score_UT.double().mean(0)

    def __call__(self, budget: LayerBudget) -> list[int]:
        """Return the tokens of each layer, summed over its KV heads. Raises ValueError without all statistics."""
        if budget.layers == 1:
            return [budget.tokens * budget.heads]
        target, most = budget.layers * (budget.span - budget.tokens), budget.span - budget.protected
        dropped = equal_mass_drops(budget.stacked(), target, most)
        if self.allocation == "exact":
            dropped = apportion(dropped, target, most)
        else:
            dropped = [min(most, count * target // max(1, sum(dropped))) for count in dropped]
        return [(budget.span - count) * budget.heads for count in dropped]

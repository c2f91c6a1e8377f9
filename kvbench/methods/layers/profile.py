"""Layer budgets by drop ratios that were computed offline: PrefixKV (Wang et al. 2024, arXiv 2412.03409)."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.methods.base import LayerBudget, Layers
from kvbench.methods.fields import check_allocation
from kvbench.methods.layer_profile import LayerProfile
from kvbench.methods.rounding import apportion


@dataclass(frozen=True)
class ProfileLayers(LayerProfile, Layers):
    """Layer budgets in proportion to a table's drop ratios. Budgets between two rows of the table are interpolated.

    Args:
        allocation: exact scales the drops by largest remainder, so that the budget is met; reference rounds each of
            them, half to even.
    """

    allocation: str = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_allocation(self)

    def __call__(self, budget: LayerBudget) -> list[int]:
        """Return the tokens of each layer, summed over its KV heads."""
        span, most = budget.span, budget.span - budget.protected
        ratios = self.ratios(budget.tokens, span)
        if self.exact:
            dropped = apportion(ratios, budget.layers * (span - budget.tokens), most)
        else:
            dropped = [min(most, round(ratio * span)) for ratio in ratios]
        return [(span - count) * budget.heads for count in dropped]

"""Layer budgets by accumulated attention: PrefixKV.

Shape suffixes: L layers, T tokens, U KV heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.methods.base import LayerBudget, Layers
from kvbench.methods.context import LayerContext
from kvbench.methods.fields import check_allocation
from kvbench.methods.rounding import apportion

_TOLERANCE = 5  # tokens, as in the reference


@dataclass(frozen=True)
class CumulativeMass(Layers):
    """Layer budgets that keep the same share of every layer's importance.

    PrefixKV (Wang et al. 2024, arXiv 2412.03409). Sort each layer's normalised scores; a binary search finds the mass
    p at which dropping the rest of every layer meets the budget to within 5 tokens; the drops are then scaled to the
    budget. The reference does this offline on calibration prompts, here it is done on the prompt itself. Needs the
    scores of all layers.

    Args:
        allocation: exact scales by largest remainder, so that the budget is met; reference truncates.
    """

    allocation: str = "exact"

    def __post_init__(self) -> None:
        check_allocation(self)

    @property
    def exact(self) -> bool:
        """True if the layers' tokens add up to the budget."""
        return self.allocation == "exact"

    @property
    def needs_statistics(self) -> bool:
        """True: the mass is searched over all layers."""
        return True

    def statistic(self, ctx: LayerContext, score_UT: Tensor) -> Tensor:
        """Return the layer's [T] importance, the mean score over its KV heads."""
        return score_UT.double().mean(0)

    def __call__(self, budget: LayerBudget) -> list[int]:
        """Return the tokens of each layer, summed over its KV heads.

        Raises:
            ValueError: the statistics of a layer are missing.
        """
        if budget.layers == 1:
            return [budget.tokens * budget.heads]
        if budget.statistics is None or len(budget.statistics) != budget.layers:
            raise ValueError(
                f"layer budgets by cumulative mass need layer_scores of all {budget.layers} layers; see keep_layers"
            )
        mass_LT = torch.stack([s.detach().cpu().double() for s in budget.statistics])
        mass_LT = mass_LT.sort(dim=-1, descending=True).values
        cdf_LT = (mass_LT / mass_LT.sum(-1, keepdim=True)).cumsum(-1)
        target = budget.layers * (budget.span - budget.tokens)
        most = budget.span - budget.protected
        dropped = _search(cdf_LT, target, most)
        if self.allocation == "exact":
            dropped = apportion(dropped, target, most)
        else:
            scale = max(1, sum(dropped))
            dropped = [min(most, count * target // scale) for count in dropped]
        return [(budget.span - count) * budget.heads for count in dropped]


def _search(cdf_LT: Tensor, target: int, most: int) -> list[int]:
    """Return tokens to drop per layer, at most `most`, so that they add up to about `target`."""
    low, high = 0.0, 1.0
    dropped: list[int] = []
    for _ in range(60):
        mid = (low + high) / 2
        point = torch.full((cdf_LT.shape[0], 1), mid, dtype=cdf_LT.dtype)
        kept = torch.searchsorted(cdf_LT, point)[:, 0] + 1
        dropped = (most - kept).clamp(min=0).tolist()
        if abs(sum(dropped) - target) < _TOLERANCE:
            break
        low, high = (low, mid) if sum(dropped) < target else (mid, high)
    return dropped

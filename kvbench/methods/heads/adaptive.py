"""More tokens for the heads that hold a layer's best ones: Ada-KV's head budgets."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kvbench.methods.base import Heads, LayerBudget
from kvbench.methods.candidates import Candidates, HeadBudget, HeadSplit
from kvbench.methods.context import LayerContext
from kvbench.methods.fields import check_allocation, check_between
from kvbench.methods.rounding import apportion


@dataclass(frozen=True)
class Adaptive(Heads):
    """Head budgets by how many of the layer's best tokens a head holds, mixed with an equal share.

    Ada-KV (Feng et al. 2024, arXiv 2407.11550): take the best `total` candidates over all heads, count them per
    head, f_h; a head keeps (1 - floor) * f_h + floor * total / U of its own best. `exact` rounds by largest
    remainder; `reference` truncates the floor and rounds each head to even, which loses or adds a few tokens.

    Args:
        floor: share of the budget that is split evenly (the reference's floor_alpha), in [0, 1].
        normalize: weigh each head's scores by the share of its mass that an even split would keep.
        allocation: exact or reference.
    """

    floor: float = 0.2
    normalize: bool = False
    allocation: str = "exact"

    def __post_init__(self) -> None:
        check_between(self, "floor", 0, 1)
        check_allocation(self)

    @property
    def compares_heads(self) -> bool:
        """True: the best tokens are counted over all heads."""
        return True

    def __call__(self, ctx: LayerContext, candidates: Candidates, total: int, budget: LayerBudget) -> HeadBudget:
        """Return the candidates to keep per KV head, as a rule where kernels know it."""
        if self.exact and not self.normalize:
            return HeadSplit(total, "layer", self.floor)
        heads, count = candidates.values_UN.shape
        base = total // heads
        if self.normalize:
            ranked = candidates.heads_by_rank(candidates.best_mass(base), key=("mass", base))
        else:
            ranked = candidates.heads_by_rank()
        counts_U = torch.bincount(ranked[:total], minlength=heads)
        if not self.exact:
            counts_U = torch.round(counts_U.float() * (1 - self.floor) + int(base * self.floor)).int()
            return [min(count, c) for c in counts_U.tolist()]
        shares = [(1 - self.floor) * c + self.floor * total / heads for c in counts_U.tolist()]
        return apportion(shares, total, limit=count)

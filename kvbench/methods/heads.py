"""Head budgets: how a layer's tokens are split over its KV heads."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kvbench.methods.base import Candidates
from kvbench.methods.rounding import apportion


@dataclass(frozen=True)
class Uniform:
    """Every head the same; an odd token goes to the lower head."""

    scope = ("head", 0.0)  # as `Kernels.select` takes it, with a floor

    def __call__(self, candidates: Candidates, total: int) -> list[int]:
        heads = candidates.values_UN.shape[0]
        return [total // heads + (head < total % heads) for head in range(heads)]


@dataclass(frozen=True)
class Adaptive:
    """Heads get what they hold of the layer's best tokens, mixed with an equal share.

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

    @property
    def scope(self) -> tuple[str, float] | None:
        """As `Kernels.select` takes it; None for what it does not know."""
        return ("layer", self.floor) if self.allocation == "exact" and not self.normalize else None

    def __call__(self, candidates: Candidates, total: int) -> list[int]:
        heads, count = candidates.values_UN.shape
        base = total // heads
        if self.normalize:
            values = candidates.values_UN
            best = values.gather(1, candidates.order_UN[:, :base]).sum(1)
            # a head whose attention lies in the window alone has no mass here, and no claim
            mass = values.sum(1).clamp_min(torch.finfo(values.dtype).tiny)
            ranked = candidates.heads_by_rank(best / mass, key=("mass", base))
        else:
            ranked = candidates.heads_by_rank()
        counts_U = torch.bincount(ranked[:total], minlength=heads)
        if self.allocation == "reference":
            counts_U = torch.round(counts_U.float() * (1 - self.floor) + int(base * self.floor)).int()
            return [min(count, c) for c in counts_U.tolist()]
        shares = [(1 - self.floor) * c + self.floor * total / heads for c in counts_U.tolist()]
        return apportion(shares, total, limit=count)

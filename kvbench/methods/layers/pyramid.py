"""More tokens in low layers than in high ones: PyramidKV's layer budgets."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.methods.base import LayerBudget, Layers
from kvbench.methods.fields import check_allocation, check_at_least
from kvbench.methods.rounding import largest_remainder


@dataclass(frozen=True)
class Pyramid(Layers):
    """An arithmetic sequence from many tokens in the first layer to few in the last.

    PyramidKV (Cai et al. 2024, arXiv 2406.02069). The end points are the reference's: the last layer selects
    `base // beta`, the first as much above `base` as the last is below, clipped to the tokens that exist.
    `exact` takes the real-valued steps between them and rounds by largest remainder; `reference` floors the step, which
    adds to the total: with 8,000 tokens, 1.4 % at 32 layers and a budget of 256, 27 % at 80 layers and 128.

    Args:
        beta: steepness, at least 1; the last layer selects 1 / beta of the average.
        allocation: exact or reference.
        uniform_when_short: give prompts shorter than twice the selected tokens equal layers, as KVCache-Factory does;
            Ada-KV's pyramid has no such branch.
    """

    beta: int = 20
    allocation: str = "exact"
    uniform_when_short: bool = True

    def __post_init__(self) -> None:
        check_at_least(self, "beta", 1)
        check_allocation(self)

    def __call__(self, budget: LayerBudget) -> list[int]:
        """Return the tokens of each layer, summed over its KV heads."""
        base = budget.tokens - budget.protected
        if budget.layers == 1 or (self.uniform_when_short and budget.span < 2 * base):
            return [budget.tokens * budget.heads] * budget.layers
        low = base // self.beta
        high = min(2 * base - low, budget.span - budget.protected)
        low = 2 * base - high
        if self.allocation == "reference":
            step = (high - low) // (budget.layers - 1)
            selected = [high - index * step for index in range(budget.layers)]
        else:
            shares = [high - index * (high - low) / (budget.layers - 1) for index in range(budget.layers)]
            selected = largest_remainder(shares, budget.layers * base)
        return [(count + budget.protected) * budget.heads for count in selected]

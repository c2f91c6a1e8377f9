"""Groups of layers that share one choice of tokens, and their budgets: WindowKV."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.methods.base import LayerBudget, Layers
from kvbench.methods.fields import InvalidField, check_allocation, check_at_least
from kvbench.methods.rounding import apportion


def group_of(layer: int, num_layers: int, shared: int) -> int:
    """Return the group of a layer: `shared` consecutive layers form one; those left over belong to the last."""
    return min(layer // shared, max(1, num_layers // shared) - 1)


@dataclass(frozen=True)
class GroupPyramid(Layers):
    """An arithmetic sequence over groups of layers; all layers of a group have equal budgets.

    WindowKV (Zuo et al. 2025, arXiv 2503.17922). The end points are the reference's: a layer of the last group selects
    `base * shared // beta`, one of the first group as much above `base` as the last is below. `exact` takes the
    real-valued steps between them; what a layer cannot take goes to the others. `reference` floors the step, and gives
    layers that would take more than the prompt has just the prompt.

    Args:
        shared: layers of a group; fewer layers than that are one group.
        beta: steepness, at least half of `shared`.
        allocation: exact or reference.
    """

    shared: int = 8
    beta: int = 14
    allocation: str = "exact"

    def __post_init__(self) -> None:
        check_at_least(self, "shared", 1)
        check_at_least(self, "beta", 1)
        if self.shared > 2 * self.beta:  # the first group would select less than nothing
            raise InvalidField("shared", self.shared, "must be at most twice {beta}", beta=self.beta)
        check_allocation(self)

    def __call__(self, budget: LayerBudget) -> list[int]:
        """Return the tokens of each layer, summed over its KV heads."""
        base, most = budget.tokens - budget.protected, budget.span - budget.protected
        groups = [group_of(layer, budget.layers, self.shared) for layer in range(budget.layers)]
        last = base * self.shared // self.beta if groups[-1] else base
        first, steps = 2 * base - last, max(1, groups[-1])
        if self.allocation == "exact":
            shares = [first - group * (first - last) / steps for group in groups]
            counts = apportion(shares, base * budget.layers, most)
        else:
            counts = [last if group == steps else first - group * ((first - last) // steps) for group in groups]
        return [(min(count, most) + budget.protected) * budget.heads for count in counts]

"""Equal budgets for all layers."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.methods.base import LayerBudget, Layers


@dataclass(frozen=True)
class Uniform(Layers):
    """Equal budgets for all layers."""

    @property
    def is_even(self) -> bool:
        """True if every layer gets the same, whatever the scores."""
        return True

    def __call__(self, budget: LayerBudget) -> list[int]:
        """Return the tokens of each layer, summed over its KV heads."""
        return [budget.tokens * budget.heads] * budget.layers

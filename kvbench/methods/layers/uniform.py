"""The same budget for every layer."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.methods.base import LayerBudget, Layers


@dataclass(frozen=True)
class Uniform(Layers):
    """The same budget for every layer."""

    def __call__(self, budget: LayerBudget) -> list[int]:
        """Return the tokens of each layer, summed over its KV heads."""
        return [budget.tokens * budget.heads] * budget.layers

"""Equal budgets for the KV heads of a layer."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.methods.base import LayerBudget, NumberedHeads
from kvbench.methods.candidates import Candidates, HeadSplit
from kvbench.methods.context import LayerContext


@dataclass(frozen=True)
class Uniform(NumberedHeads):
    """Equal budgets for all KV heads of a layer; odd tokens go to the lower heads."""

    @property
    def is_even(self) -> bool:
        """True if every KV head of a layer gets the same, whatever the scores."""
        return True

    def numbers(self, layer: int, total: int, budget: LayerBudget) -> list[int]:
        """Return the candidates to keep per KV head."""
        return [total // budget.heads + (head < total % budget.heads) for head in range(budget.heads)]

    def __call__(self, ctx: LayerContext, candidates: Candidates, total: int, budget: LayerBudget) -> HeadSplit:
        """Return the candidates to keep per KV head, as a rule."""
        return HeadSplit(total, "head")

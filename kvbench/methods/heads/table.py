"""Budgets by a table of head scores, shared out over all layers and heads at once: HeadKV (arXiv 2410.19258)."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.methods.base import LayerBudget, Layers, NumberedHeads
from kvbench.methods.fields import check_allocation, check_at_least, check_between
from kvbench.methods.head_scores import HeadScores
from kvbench.methods.rounding import apportion


@dataclass(frozen=True)
class _Capacities(HeadScores):
    """The candidates of every head: its share, by score, of 1 / beta of the budget, and an equal part of the rest."""

    beta: float = 1.01  # at least 1
    allocation: str = "exact"
    temp: float = 1.0  # exponent of the shares; with more than 50 all of them could round to 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, "beta", 1)
        check_between(self, "temp", 0, 50)
        check_allocation(self)

    @property
    def exact(self) -> bool:
        """True if the heads' tokens add up to the budget."""
        return self.allocation == "exact"

    def capacities(self, budget: LayerBudget) -> list[list[int]]:
        """Return the candidates of every layer and KV head; a KV head has the mean of its query heads."""
        self.check_model(layers=budget.layers, heads=budget.heads, query_heads=budget.query_heads)
        heads, group, total = budget.heads, budget.query_heads // budget.heads, sum(self.head_scores)
        base, most = budget.tokens - budget.protected, budget.span - budget.protected
        powers = [(score / total) ** self.temp for score in self.head_scores]
        pool, least, total = base // self.beta * len(powers), base - base // self.beta, sum(powers)
        shares = [(float if self.exact else round)(power / total * pool + least) for power in powers]
        means = [sum(shares[i : i + group]) / group for i in range(0, len(shares), group)]
        counts = apportion(means, budget.free, most) if self.exact else [min(most, round(mean)) for mean in means]
        return [counts[i : i + heads] for i in range(0, len(counts), heads)]


@dataclass(frozen=True)
class TableLayers(_Capacities, Layers):
    """The sum of what the table gives to the heads of each layer."""

    def __call__(self, budget: LayerBudget) -> list[int]:
        return [sum(counts) + budget.heads * budget.protected for counts in self.capacities(budget)]


@dataclass(frozen=True)
class TableHeads(_Capacities, NumberedHeads):
    """The table's candidates for the heads of one layer; scaled if something else chose the layer's tokens."""

    def numbers(self, layer: int, total: int, budget: LayerBudget) -> list[int]:
        counts = self.capacities(budget)[layer]
        return counts if sum(counts) == total else apportion(counts, total, budget.span - budget.protected)

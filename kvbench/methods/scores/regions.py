"""Attention within the regions of a prompt, and from one to the other: the scores of CSP.

Shape suffixes: U KV heads, G query heads per KV head, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kvbench.methods.base import LayerContext, Score
from kvbench.methods.context import COLUMN_SUM_QUERIES
from kvbench.methods.fields import check_between, check_one_of
from kvbench.methods.region_sums import region_sums
from kvbench.methods.scores.groups import REDUCTIONS, reduce_group


@dataclass(frozen=True)
class RegionAttention(Score):
    """Attention of the last queries within context and question, or from one of these regions to the other.

    CSP (Pei et al. 2024, arXiv 2412.04652), where the regions are text and images. A weight is exp(z) / (1 + the sum of
    all exp(z)): a query that finds nothing counts little. `share` of the prompt are the queries.
    """

    share: float = 0.1
    reduce: str = "mean"
    across: bool = False

    def __post_init__(self) -> None:
        check_between(self, "share", 0, 1)
        check_one_of(self, "reduce", REDUCTIONS)

    @property
    def queries(self) -> int:
        """Queries whose attention is held at once: a block."""
        return COLUMN_SUM_QUERIES

    @property
    def needs(self) -> frozenset[str]:
        """The regions."""
        return frozenset({"spans"})

    def __call__(self, ctx: LayerContext) -> Tensor:
        """Return [U, T] scores."""
        both_2UGT = ctx.memo(("regions", self.share), lambda: region_sums(ctx, self.share))
        return reduce_group(both_2UGT[int(self.across)], self.reduce, dim=1)

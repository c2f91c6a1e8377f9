"""Attention accumulated over all queries of the prompt: H2O's score."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kvbench.methods.base import LayerContext, Score
from kvbench.methods.context import COLUMN_SUM_QUERIES
from kvbench.methods.fields import check_one_of
from kvbench.methods.scores.groups import REDUCTIONS, reduce_group


@dataclass(frozen=True)
class ColumnSums(Score):
    """Attention accumulated over all prompt queries, fully causal, reduced over the group.

    H2O (Zhang et al. 2023, arXiv 2306.14048), applied once after the prefill.

    Args:
        reduce: how the query heads of a KV head are combined: mean, max or sum.
    """

    reduce: str = "mean"

    def __post_init__(self) -> None:
        check_one_of(self, "reduce", REDUCTIONS)

    @property
    def queries(self) -> int:
        """Queries whose attention is held at once: a block."""
        return COLUMN_SUM_QUERIES

    def __call__(self, ctx: LayerContext) -> Tensor:
        """Return [U, T] scores."""
        sums_UGT = ctx.column_sums().view(ctx.num_kv_heads, ctx.group, -1)
        return reduce_group(sums_UGT, self.reduce, dim=1)

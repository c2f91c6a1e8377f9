"""Attention accumulated over all queries and heads of a layer: PrefixKV's score."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kvbench.methods.base import LayerContext, Score
from kvbench.methods.context import COLUMN_SUM_QUERIES


@dataclass(frozen=True)
class LayerColumnSums(Score):
    """Attention accumulated over all queries, mean over all query heads, the same for every KV head.

    PrefixKV (Wang et al. 2024, arXiv 2412.03409).
    """

    @property
    def queries(self) -> int:
        """Queries whose attention is held at once: a block."""
        return COLUMN_SUM_QUERIES

    @property
    def is_shared(self) -> bool:
        """True: the attention of all heads is one sum."""
        return True

    def __call__(self, ctx: LayerContext) -> Tensor:
        """Return [U, T] scores."""
        return ctx.column_sums().mean(0, keepdim=True).expand(ctx.num_kv_heads, -1)

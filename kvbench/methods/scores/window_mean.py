"""Mean attention of the last queries of the prompt, to their own tokens as well: CaM's measure of a token.

Shape suffixes: U KV heads, G query heads per KV head, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kvbench.methods.base import LayerContext, Score
from kvbench.methods.fields import check_at_least, check_one_of
from kvbench.methods.scores.groups import REDUCTIONS, add_up, reduce_group


@dataclass(frozen=True)
class WindowMean(Score):
    """Attention of the last `window` queries, or of all if there are fewer: mean over them, reduced over the group.

    Args:
        window: queries at the end of the prompt.
        reduce: how the query heads of a KV head are combined: mean, max or sum. It comes before the mean.
    """

    window: int
    reduce: str = "mean"

    def __post_init__(self) -> None:
        check_at_least(self, "window", 1)
        check_one_of(self, "reduce", REDUCTIONS)

    @property
    def queries(self) -> int:
        """Queries whose attention is held at once."""
        return self.window

    def __call__(self, ctx: LayerContext) -> Tensor:
        """Return [U, T] scores."""
        queries = min(self.window, ctx.num_tokens)
        return add_up(reduce_group(ctx.window_attention(queries), self.reduce, dim=1), 1) / queries

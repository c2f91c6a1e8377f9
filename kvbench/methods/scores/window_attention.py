"""Attention of the last queries of the prompt: SnapKV's score.

Shape suffixes: U KV heads, G query heads per KV head, W window queries, T tokens, N = T - W.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from kvbench.methods.base import LayerContext, Score
from kvbench.methods.fields import check_at_least, check_one_of
from kvbench.methods.scores.groups import REDUCTIONS, add_up, reduce_group
from kvbench.methods.scores.pooling import check_pooling, pool


@dataclass(frozen=True)
class WindowAttention(Score):
    """Attention of the last `window` queries: mean over them, reduced over the group, then pooled.

    SnapKV (Li et al. 2024, arXiv 2404.14469); the order window, group, pool is Ada-KV's (arXiv 2407.11550).
    Columns inside the window are dropped before pooling and score 0: `select` keeps them anyway.

    Args:
        window: queries at the end of the prompt, at least 1.
        kernel_size: neighbouring tokens that are pooled, an odd number.
        pooling: avg, max or none.
        reduce: how the query heads of a KV head are combined: mean, max or sum.
    """

    idle = (("kernel_size", "pooling", "none"),)
    window: int
    kernel_size: int = 7
    pooling: str = "max"
    reduce: str = "mean"

    def __post_init__(self) -> None:
        check_at_least(self, "window", 1)  # its queries make the scores
        check_pooling(self)
        check_one_of(self, "reduce", REDUCTIONS)

    @property
    def unscored(self) -> int:
        return self.window

    queries = unscored

    def __call__(self, ctx: LayerContext) -> Tensor:
        past, size = ctx.num_tokens - self.window, self.kernel_size
        if ctx.kernels is None:
            mean_UGN = add_up(ctx.window_attention(self.window)[..., :past], 2) / self.window
            score_UN = pool(reduce_group(mean_UGN, self.reduce, dim=1), self.pooling, size)
        else:
            score_UN = ctx.kernels.window_score(
                ctx.q[:, past:], ctx.k, scaling=ctx.scaling, reduce=self.reduce, pooling=self.pooling,
                kernel_size=size, lse_HW=ctx.last_lse(self.window),
            )  # fmt: skip
        return F.pad(score_UN, (0, self.window))

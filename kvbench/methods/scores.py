"""Scores: what a token is worth to a KV head, from one layer's prompt.

Shape suffixes: H query heads, U KV heads, G query heads per KV head, W window queries, T tokens.
Each part is frozen and hashable: variants whose scores are equal share one computation per layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kvbench.methods.base import LayerContext


def reduce_group(x: Tensor, how: str, dim: int) -> Tensor:
    """Reduce over the query heads of a KV group: mean, max or sum."""
    if how == "max":
        return x.amax(dim)
    return add_up(x, dim) / (x.shape[dim] if how == "mean" else 1)


def add_up(x: Tensor, dim: int) -> Tensor:
    """Sum in the same order for every element.

    `x.sum` adds the columns at a vector's end in another order, which tells tied tokens apart by their position.
    """
    first, *rest = x.unbind(dim)
    total = first.clone()
    for part in rest:
        total += part
    return total


def pool(x_UN: Tensor, pooling: str, kernel_size: int) -> Tensor:
    """Pool along tokens, stride 1, same length. The average divides by `kernel_size` also at the borders."""
    if pooling == "none" or x_UN.shape[-1] == 0:
        return x_UN
    half = kernel_size // 2
    if pooling == "max":
        # max_pool1d pads with -inf and wants half the kernel at least once inside the input
        return F.max_pool1d(x_UN[None], kernel_size, stride=1, padding=half)[0]
    return F.avg_pool1d(x_UN[None], kernel_size, stride=1, padding=half, count_include_pad=True)[0]


@dataclass(frozen=True)
class WindowAttention:
    """Attention that the last `window` queries pay, mean over them, reduced over the group, then pooled.

    SnapKV (Li et al. 2024, arXiv 2404.14469); the order window, group, pool is Ada-KV's (arXiv 2407.11550).
    Columns inside the window are dropped before pooling and score 0: `select` keeps them anyway.
    """

    window: int
    kernel_size: int = 7
    pooling: str = "max"
    reduce: str = "mean"

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"method.window={self.window}: must be at least 1, its queries make the scores")

    def __call__(self, ctx: LayerContext) -> Tensor:
        past = ctx.num_tokens - self.window
        if ctx.kernels is not None:
            score_UN = ctx.kernels.window_score(
                ctx.q[:, past:],
                ctx.k,
                scaling=ctx.scaling,
                reduce=self.reduce,
                pooling=self.pooling,
                kernel_size=self.kernel_size,
            )
            return F.pad(score_UN, (0, self.window))
        attention_UGWT = ctx.window_attention(self.window)
        score_UN = reduce_group(add_up(attention_UGWT[..., :past], 2) / self.window, self.reduce, dim=1)
        return F.pad(pool(score_UN, self.pooling, self.kernel_size), (0, self.window))


@dataclass(frozen=True)
class ColumnSums:
    """Attention accumulated over all prompt queries, fully causal, reduced over the group.

    H2O (Zhang et al. 2023, arXiv 2306.14048) applied once after the prefill.
    """

    reduce: str = "mean"

    def __call__(self, ctx: LayerContext) -> Tensor:
        sums_UGT = ctx.column_sums().view(ctx.num_kv_heads, ctx.group, -1)
        return reduce_group(sums_UGT, self.reduce, dim=1)


@dataclass(frozen=True)
class LayerColumnSums:
    """Attention accumulated over all queries, mean over all query heads, the same for every KV head.

    PrefixKV (Wang et al. 2024, arXiv 2412.03409).
    """

    def __call__(self, ctx: LayerContext) -> Tensor:
        return ctx.column_sums().mean(0, keepdim=True).expand(ctx.num_kv_heads, -1)


@dataclass(frozen=True)
class Recency:
    """The later, the better: with sinks protected this is StreamingLLM (Xiao et al. 2023, arXiv 2309.17453)."""

    def __call__(self, ctx: LayerContext) -> Tensor:
        positions = torch.arange(ctx.num_tokens, dtype=torch.float32, device=ctx.k.device)
        return positions.expand(ctx.num_kv_heads, -1)

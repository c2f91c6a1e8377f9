"""Selectors: which tokens a head keeps, given how many."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.methods.base import Candidates, LayerContext


@dataclass(frozen=True)
class TopK:
    """The best-scored candidates, the first `sinks` tokens and the last `window` tokens.

    Ties at the threshold go to the lower position, so the kept set is the same on every device.

    Args:
        sinks: leading tokens that are always kept.
        window: trailing tokens that are always kept; a float is a share of the budget.
    """

    sinks: int = 0
    window: int | float = 0

    def __call__(self, ctx: LayerContext, candidates: Candidates, counts: list[int], window: int) -> Tensor:
        heads, tokens = ctx.num_kv_heads, ctx.num_tokens
        keep_UT = torch.ones(heads, tokens, dtype=torch.bool, device=ctx.k.device)
        limit_U1 = torch.tensor(counts, device=ctx.k.device)[:, None]
        keep_UT[:, self.sinks : tokens - window] = candidates.rank_UN < limit_U1
        return keep_UT

    def by_kernel(
        self, ctx: LayerContext, candidates: Candidates, total: int, scope: tuple[str, float], window: int
    ) -> Tensor:
        """The same of the layer's `total`, split over the heads as `scope` says, without a word to the host."""
        assert ctx.kernels is not None
        tokens = ctx.num_tokens
        keep_UT = torch.ones(ctx.num_kv_heads, tokens, dtype=torch.bool, device=ctx.k.device)
        keep_UT[:, self.sinks : tokens - window] = ctx.kernels.select(candidates.values_UN, total, scope[1], scope[0])
        return keep_UT

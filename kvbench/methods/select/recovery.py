"""The share of a head's attention that FastGen's policies recover (Ge et al. 2023, arXiv 2310.01801).

Shape suffixes: P policies but "full", cheapest first, U KV heads, G query heads per KV head, Q queries, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvbench.methods.context import LayerContext
from kvbench.methods.scores.column_sums import ColumnSums
from kvbench.methods.select.policy_sets import policy_sets


def first_that_recovers(
    ctx: LayerContext, rule: str, recovery: float, shares: tuple[float, float], sinks: int
) -> Tensor:
    """Return the index [U] of the first policy that recovers this much of a head's attention; P if none does."""

    def choose() -> Tensor:
        sets_PUT = policy_sets(ctx, rule, ctx.num_tokens, sinks, shares)
        if rule == "mass":
            serves_PU = recovered_mass(ctx, sets_PUT, shares[1]) >= recovery
        else:
            serves_PU = largest_error(ctx, sets_PUT) < 1 - recovery
        return torch.cat([serves_PU, torch.ones_like(serves_PU[:1])]).int().argmax(0)

    return ctx.memo(("policies", rule, recovery, shares, sinks), choose)


def recovered_mass(ctx: LayerContext, sets_PUT: Tensor, local: float) -> Tensor:
    """Return the mean attention [P, U] of all queries to what they see under a policy; local tokens move with them."""
    near = max(1, int(local * ctx.num_tokens))
    still_PUT = sets_PUT.clone()
    still_PUT[3, :, -near:] &= sets_PUT[1, :, -near:]
    total_PU = (ctx.score(ColumnSums()) * still_PUT).sum(-1)
    for begin, end, attention_UGQT in ctx.rows():
        first = max(0, begin - near + 1)
        at_T = torch.arange(first, end, device=ctx.k.device)
        near_QT = at_T > torch.arange(begin, end, device=ctx.k.device)[:, None] - near
        moving_UQT = near_QT & ~still_PUT[3, :, None, first:end]
        total_PU[3] += (attention_UGQT[..., first:].mean(1) * moving_UQT).sum((1, 2))
    return total_PU / ctx.num_tokens


def largest_error(ctx: LayerContext, sets_PUT: Tensor) -> Tensor:
    """Return the largest change [P, U] of the attention to a kept token if the others are gone; 1 if all are gone.

    If kept tokens got m of a query's attention, each of them then gets 1 / m times as much.
    """
    worst_PU = (~sets_PUT.any(-1)).to(ctx.dtype)
    for begin, end, attention_UGQT in ctx.rows():
        for worst_U, kept_UT in zip(worst_PU, sets_PUT[..., :end], strict=True):
            kept_UGQT = attention_UGQT * kept_UT[:, None, None]
            mass_UGQ, sees_UQ = kept_UGQT.sum(-1), kept_UT.cumsum(-1)[:, begin:] > 0
            error_UGQ = kept_UGQT.amax(-1) * (1 - mass_UGQ).clamp(min=0) / mass_UGQ
            error_UGQ = torch.where(mass_UGQ > 0, error_UGQ, sees_UQ[:, None].to(error_UGQ.dtype))
            torch.maximum(worst_U, error_UGQ.amax((1, 2)), out=worst_U)
    return worst_PU

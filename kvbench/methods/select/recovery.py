"""The share of a head's attention that FastGen's policies recover (Ge et al. 2023, arXiv 2310.01801).

Shape suffixes: P policies but "full", cheapest first, U KV heads, G query heads per KV head, Q queries, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvbench.methods.context import LayerContext
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
    total_PU, near = torch.zeros(sets_PUT.shape[:2], device=ctx.k.device), max(1, int(local * ctx.num_tokens))
    still_PUT = sets_PUT.clone()
    still_PUT[3, :, -near:] &= sets_PUT[1, :, -near:]
    for begin, end, attention_UGQT in ctx.rows():
        at_T = torch.arange(end, device=ctx.k.device)
        seen_PUQT = still_PUT[:, :, None, :end].repeat(1, 1, end - begin, 1)
        seen_PUQT[3] |= at_T > at_T[begin:, None] - near
        total_PU += (attention_UGQT.mean(1) * seen_PUQT).sum((2, 3))
    return total_PU / ctx.num_tokens


def largest_error(ctx: LayerContext, sets_PUT: Tensor) -> Tensor:
    """Return the largest change [P, U] of the attention to a kept token if the others are gone; 1 if all are gone."""
    worst_PU = (~sets_PUT.any(-1)).float()
    for _, end, logits_UGQT in ctx.logit_rows():
        for worst_U, kept_UT in zip(worst_PU, sets_PUT[..., :end], strict=True):
            kept_U11T = kept_UT[:, None, None]
            left_UGQT = logits_UGQT.masked_fill(~kept_U11T, -torch.inf).softmax(-1).nan_to_num(0)
            error_UGQT = (left_UGQT - logits_UGQT.softmax(-1)).abs() * kept_U11T
            torch.maximum(worst_U, error_UGQT.amax((1, 2, 3)).float(), out=worst_U)
    return worst_PU

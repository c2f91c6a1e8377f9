"""Sums of the attention within the regions of a prompt, and from one to the other.

Shape suffixes: H query heads, U KV heads, G query heads per KV head, Q queries of a block, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from kvbench.methods.context import LayerContext


def region_sums(ctx: LayerContext, share: float) -> Tensor:
    """Return the attention that each token gets within its region, and from the other one: [2, U, G, T]."""
    tokens, (begin, end) = ctx.num_tokens, ctx.spans["question"]
    at_T = torch.arange(tokens, device=ctx.k.device)
    asks_T = (at_T >= begin) & (at_T < end)
    sums_2UGT = torch.zeros(2, ctx.num_kv_heads, ctx.group, tokens, dtype=ctx.dtype, device=ctx.k.device)
    for first, last, weight_UGQT in _weights(ctx, tokens - max(1, int(tokens * share))):
        if not 0 < end - begin < tokens:  # there is one region
            sums_2UGT[0, ..., :last] += weight_UGQT.sum(2)
            continue
        from_, to = (min(max(at - first, 0), last - first) for at in (begin, end))  # the queries of the question
        by_question_UGT = weight_UGQT[:, :, from_:to].sum(2)
        by_others_UGT = weight_UGQT[:, :, :from_].sum(2) + weight_UGQT[:, :, to:].sum(2)
        sums_2UGT[0, ..., :last] += torch.where(asks_T[:last], by_question_UGT, by_others_UGT)
        sums_2UGT[1, ..., :last] += torch.where(asks_T[:last], by_others_UGT, by_question_UGT)
    return sums_2UGT


def _weights(ctx: LayerContext, first: int) -> Iterator[tuple[int, int, Tensor]]:
    """Yield exp(logit) / (1 + the sum of a query's exponentials) in blocks of queries: begin, end, [U, G, Q, T]."""
    lse_HQ = ctx.last_lse(ctx.num_tokens - first)
    if lse_HQ is None:
        for begin, end, logit_UGQT in ctx.logit_rows(first):
            yield begin, end, (logit_UGQT - F.softplus(logit_UGQT.logsumexp(-1, keepdim=True))).exp()
        return
    share_UGQ1 = lse_HQ.sigmoid().unflatten(0, (ctx.num_kv_heads, ctx.group))[..., None]
    for begin, end, attention_UGQT in ctx.rows(first):
        yield begin, end, attention_UGQT * share_UGQ1[:, :, begin - first : end - first]

"""The tokens of a prompt that FastGen's policies keep (Ge et al. 2023, arXiv 2310.01801).

Shape suffixes: P policies but "full", cheapest first, U KV heads, T tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kvbench.methods.context import COLUMN_SUM_QUERIES, LayerContext
from kvbench.methods.scores.column_sums import ColumnSums

ATOMS = ("special", "punctuation", "frequent", "local")
POLICIES = (*("+".join(ATOMS[: count + 1]) for count in range(len(ATOMS))), "full")
"""By cost, each with what the ones before it keep."""
QUERIES = COLUMN_SUM_QUERIES  # whose attention is read at once to choose between them


def policy_sets(ctx: LayerContext, rule: str, tokens: int, sinks: int, shares: tuple[float, float]) -> Tensor:
    """Return the tokens [P, U, T] that each policy keeps; `shares`, of `tokens`, are those of frequent and local."""
    assert ctx.model is not None and ctx.token_ids is not None
    at_T = torch.arange(ctx.num_tokens, device=ctx.k.device)
    ids = [ctx.model.ids(kind).to(at_T.device) for kind in ("special", "punctuation")]
    special_T, punctuation_T = (torch.isin(ctx.token_ids.to(at_T.device), of_kind) for of_kind in ids)
    special_T |= at_T < sinks
    typed_T = special_T | punctuation_T
    by_mass = rule == "mass"  # frequent tokens are then added to the others, by mean attention; else a set of their own
    many, near = (math.ceil if by_mass else int)(shares[0] * tokens), int(shares[1] * tokens)
    local_T = at_T >= ctx.num_tokens - (max(1, near) if by_mass else near)
    score_UT = ctx.score(ColumnSums()) / (ctx.num_tokens - at_T if by_mass else 1)

    def frequent(others_T: Tensor) -> Tensor:
        taken_T = others_T & by_mass
        order_UT = score_UT.masked_fill(taken_T, -1).argsort(dim=-1, descending=True, stable=True)
        chosen_UT: Tensor = (order_UT.argsort(-1) < many) & ~taken_T
        return chosen_UT

    sets = [special_T, typed_T, typed_T | frequent(typed_T), typed_T | local_T | frequent(typed_T | local_T)]
    return torch.stack([of_policy.expand(ctx.num_kv_heads, -1) for of_policy in sets])

"""FastGen (Ge et al. 2023, arXiv 2310.01801): each KV head keeps the tokens of the cheapest policy that serves it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.methods.base import Candidates, HeadBudget, LayerContext, Protected, Select
from kvbench.methods.fields import check_at_least, check_between, check_one_of
from kvbench.methods.plan import NO_LIMIT, Plan
from kvbench.methods.select.policy_sets import POLICIES, QUERIES, policy_sets
from kvbench.methods.select.recovery import first_that_recovers


@dataclass(frozen=True)
class CheapestPolicy(Select):
    """The first of `policies` under which a head recovers `recovery` of its attention (shapes: see `policy_sets`).

    Args:
        rule: "mass": the mean attention to what stays; "element": 1 - the largest change of a kept token's attention.
        frequent, local: shares of the prompt and of `ahead` tokens to come.
        sinks: first tokens of the sequence that every policy keeps.
    """

    recovery: float = 0.9
    rule: str = "mass"
    frequent: float = 0.3
    local: float = 0.3
    ahead: int = 0
    sinks: int = 4
    needs, counted, policies, queries_at_once = frozenset({"model", "token_ids"}), False, POLICIES, QUERIES

    def __post_init__(self) -> None:
        check_one_of(self, "rule", ("mass", "element"))
        for name in ("recovery", "frequent", "local"):
            check_between(self, name, 1e-6 if name == "recovery" else 0, 1)
        for name in ("ahead", "sinks"):
            check_at_least(self, name, 0)

    def __call__(self, ctx: LayerContext, _: Candidates | None, __: HeadBudget | None, protected: Protected) -> Tensor:
        """Return the keep mask [U, T]."""
        sets_PUT = policy_sets(ctx, self.rule, ctx.num_tokens + self.ahead, self.sinks, (self.frequent, self.local))
        all_1UT = torch.ones_like(sets_PUT[:1])
        return torch.cat([sets_PUT, all_1UT])[self._codes(ctx), torch.arange(ctx.num_kv_heads)]

    def plan(self, ctx: LayerContext, keep_UT: Tensor) -> Plan:
        """Return limits from the policies' shares; special tokens, and new punctuation where it counts, stay."""
        assert ctx.model is not None
        code_U, tokens = self._codes(ctx), ctx.num_tokens + self.ahead
        many_U, near_U = round(self.frequent * tokens) * (code_U >= 2), round(self.local * tokens) * (code_U == 3)
        pinned_UT = policy_sets(ctx, self.rule, 0, self.sinks, (0, 0))[code_U.clamp(max=1), torch.arange(len(code_U))]
        held_U = pinned_UT.sum(1) + max(0, self.sinks - ctx.num_tokens) + many_U + near_U  # the answer may have sinks
        limit_U, pins_U = held_U.maximum(keep_UT.sum(1)).masked_fill(code_U == 4, NO_LIMIT), (code_U > 0) & (code_U < 4)
        return Plan(torch.stack([code_U, near_U], 1).int(), limit_U, pinned_UT, pins_U, ctx.model.ids("punctuation"))

    def _codes(self, ctx: LayerContext) -> Tensor:
        """Return the index of each head's policy [U]."""
        return first_that_recovers(ctx, self.rule, self.recovery, (self.frequent, self.local), self.sinks)

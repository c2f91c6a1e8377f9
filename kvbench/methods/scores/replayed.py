"""The state in which a decode policy would be after the prompt, as a score.

Shape suffixes: U KV heads, G query heads per KV head, Q queries of a block, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.methods import policy_answers
from kvbench.methods.base import LayerContext, Score
from kvbench.methods.context import COLUMN_SUM_QUERIES
from kvbench.methods.decoding import DecodePolicy
from kvbench.methods.slots import Slots


@dataclass(frozen=True)
class Replayed(Score):
    """The state of a policy that has observed the attention of the prompt's queries while nothing left.

    The queries come in blocks. Each block is a step of that many new tokens, whose states begin at 0. A policy whose
    `observe` needs limits, plans or draws cannot be replayed. Policies that differ only in what `drop` reads should
    ask for the replay of the same policy: it is then computed once.
    """

    policy: DecodePolicy

    @property
    def queries(self) -> int:
        """Queries whose attention is held at once: a block."""
        return COLUMN_SUM_QUERIES

    def __call__(self, ctx: LayerContext) -> Tensor:
        """Return [U, T] states."""
        state_UT = torch.zeros(ctx.k.shape[:2], device=ctx.k.device)
        asks = ctx.num_tokens if self.policy.asks is None else self.policy.asks
        for _, end, attention_UGQT in ctx.rows(max(0, ctx.num_tokens - asks)):
            slots = Slots.whole(ctx.num_tokens, state_UT[:, :end])
            policy_answers.observe(self.policy, slots, attention_UGQT[None])
            state_UT[:, :end] = slots.state_BUC[0]
        return state_UT

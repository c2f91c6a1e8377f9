"""The tokens that a decode policy would not drop after the prompt, however many.

Shape suffixes: U KV heads, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.methods import policy_answers
from kvbench.methods.base import LayerContext, Protected, Score, Select
from kvbench.methods.candidates import Candidates, HeadBudget
from kvbench.methods.decoding import DecodePolicy, Start
from kvbench.methods.fields import InvalidField
from kvbench.methods.slots import Slots


@dataclass(frozen=True)
class Undropped(Select):
    """Every token that `policy` would keep if the prompt had been its last step.

    There is no budget: the policy must be one without a limit, whose `drop` returns a mask.
    """

    policy: DecodePolicy

    def __post_init__(self) -> None:
        if self.policy.has_limit:
            raise InvalidField("policy", type(self.policy).__name__, "must be a policy without a limit")

    @property
    def counted(self) -> bool:
        """False: the policy decides how many tokens stay."""
        return False

    @property
    def scores(self) -> Sequence[Score]:
        """The score from which the policy begins."""
        return () if self.policy.score is None else (self.policy.score,)

    def __call__(
        self, ctx: LayerContext, candidates: Candidates | None, budget: HeadBudget | None, protected: Protected
    ) -> Tensor:
        """Return the keep mask [U, T]."""
        slots = Slots.whole(ctx.num_tokens, torch.zeros(ctx.k.shape[:2], device=ctx.k.device))
        score_UT = None if self.policy.score is None else ctx.score(self.policy.score)
        start = Start(ctx.layer, ctx.num_layers, ctx.num_tokens, slots.pos_BUC[0], slots.live_BUC[0], score_UT)
        slots.state_BUC = policy_answers.first_state(self.policy, start)[None]
        return ~policy_answers.gone(self.policy, slots)[0]

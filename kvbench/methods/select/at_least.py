"""All tokens with a certain score, however many."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.methods.base import LayerContext, Protected, Select
from kvbench.methods.candidates import Candidates, HeadBudget
from kvbench.methods.fields import check_at_least


@dataclass(frozen=True)
class AtLeast(Select):
    """Every token with a score of at least `threshold`, the first `sinks` and the last `window` tokens.

    There is no budget: every head keeps as many tokens as the score says.
    """

    threshold: float = 0.0
    sinks: int = 0
    window: int = 0

    def __post_init__(self) -> None:
        check_at_least(self, "sinks", 0)
        check_at_least(self, "window", 0)

    @property
    def counted(self) -> bool:
        """False: the scores decide how many tokens stay."""
        return False

    def protected(self, tokens: int) -> Protected:
        """Return the tokens that are always kept."""
        return Protected(self.sinks, self.window)

    def __call__(
        self, ctx: LayerContext, candidates: Candidates | None, budget: HeadBudget | None, protected: Protected
    ) -> Tensor:
        """Return the keep mask [U, T]."""
        assert candidates is not None, "AtLeast needs a score"
        keep_UT = torch.ones(ctx.num_kv_heads, ctx.num_tokens, dtype=torch.bool, device=ctx.k.device)
        keep_UT[:, protected.sinks : ctx.num_tokens - protected.window] = candidates.values_UN >= self.threshold
        return keep_UT

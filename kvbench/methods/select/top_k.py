"""The best candidates of every KV head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.methods.base import Protected, Select
from kvbench.methods.candidates import Candidates, HeadBudget
from kvbench.methods.context import LayerContext
from kvbench.methods.fields import check_at_least
from kvbench.methods.window import check_window, window_tokens


@dataclass(frozen=True)
class TopK(Select):
    """The best-scored candidates, the first `sinks` tokens and the last `window` tokens.

    Ties at the threshold go to the lower position, so the kept set is the same on every device.

    Args:
        sinks: leading tokens that are always kept.
        window: trailing tokens that are always kept; a float is a share of the budget.
    """

    sinks: int = 0
    window: int | float = 0

    def __post_init__(self) -> None:
        check_at_least(self, "sinks", 0)
        check_window(self)

    def protected(self, tokens: int) -> Protected:
        """Return the tokens that are always kept under a budget of `tokens` per KV head."""
        return Protected(self.sinks, window_tokens(self.window, tokens))

    def __call__(
        self, ctx: LayerContext, candidates: Candidates | None, budget: HeadBudget | None, protected: Protected
    ) -> Tensor:
        """Return the keep mask [U, T]."""
        assert candidates is not None and budget is not None
        keep_UT = torch.ones(ctx.num_kv_heads, ctx.num_tokens, dtype=torch.bool, device=ctx.k.device)
        keep_UT[:, protected.sinks : ctx.num_tokens - protected.window] = candidates.best(budget)
        return keep_UT

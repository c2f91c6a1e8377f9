"""Whole windows of the best tokens, as WindowKV chooses them. Shape suffixes: U KV heads, T tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kvbench.methods.base import LayerContext, Protected, Select
from kvbench.methods.candidates import Candidates, HeadBudget
from kvbench.methods.fields import check_allocation
from kvbench.methods.select.top_k import TopK
from kvbench.methods.windows import OfWindows


@dataclass(frozen=True)
class BestWindows(OfWindows, Select):
    """The best windows and the last tokens of the prompt. All tokens of a window must have the same score.

    WindowKV (Zuo et al. 2025, arXiv 2503.17922). `exact` also keeps the first tokens of one further window, so that
    the budget is met. `reference` keeps whole windows alone, as many as leave at most the budget if all were full.

    Args:
        allocation: exact or reference.
    """

    allocation: str = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_allocation(self)

    def protected(self, tokens: int) -> Protected:
        """Return the tokens that are always kept: the last ones, whose queries make the scores."""
        return Protected(0, self.suffix)

    def __call__(
        self, ctx: LayerContext, candidates: Candidates | None, budget: HeadBudget | None, protected: Protected
    ) -> Tensor:
        """Return the keep mask [U, T]."""
        assert candidates is not None and budget is not None
        counts = candidates.counts(budget)
        if self.allocation == "reference":
            counts = [self._whole(candidates, count) for count in counts]
        return TopK()(ctx, candidates, budget if self.allocation == "exact" else counts, protected)

    def _whole(self, candidates: Candidates, count: int) -> int:
        """Return the tokens of the windows that stay where `count` tokens may."""
        tokens = candidates.values_UN.shape[1]
        windows = -(-tokens // self.size)
        kept = windows - max(0, -(-(tokens - count) // self.size))
        begin = (windows - 1) * self.size  # of the last window, which may be shorter
        rank = int(candidates.rank_UN[0, begin]) // self.size
        return max(0, kept * self.size - (self.size * windows - tokens if rank < kept else 0))

"""The best tokens by attention within their region, and the best by attention from the other one: CSP's selection."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.methods.base import LayerContext, Protected, Score
from kvbench.methods.candidates import Candidates, HeadBudget
from kvbench.methods.fields import check_allocation, check_between
from kvbench.methods.scores.regions import RegionAttention
from kvbench.methods.select.top_k import TopK


@dataclass(frozen=True, kw_only=True)
class WithinAndAcross(TopK):
    """A share `ratio` of a head's tokens by the attention `across` regions, the others by the method's own score.

    CSP (arXiv 2412.04652). With `reference`, a token that is among the best of both takes two places: fewer stay.
    """

    across: RegionAttention
    ratio: float = 0.1
    allocation: str = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_between(self, "ratio", 0, 1)
        check_allocation(self)

    @property
    def needs(self) -> frozenset[str]:
        """The regions."""
        return self.across.needs

    @property
    def scores(self) -> tuple[Score, ...]:
        """The attention across regions."""
        return (self.across,)

    def __call__(
        self, ctx: LayerContext, candidates: Candidates | None, budget: HeadBudget | None, protected: Protected
    ) -> Tensor:
        """Return the keep mask [U, T]."""
        assert candidates is not None and budget is not None
        counts, (begin, end) = candidates.counts(budget), ctx.spans["question"]
        ratio = self.ratio if 0 < end - begin < ctx.num_tokens else 0.0
        across = [int(n * ratio) for n in counts]
        within = [n - int(n * ratio) if self.exact else int(n * (1 - ratio)) for n in counts]
        keep_UT, last = super().__call__(ctx, candidates, within, protected), ctx.num_tokens - protected.window
        across_UT = ctx.score(self.across).masked_fill(keep_UT & self.exact, -torch.inf)
        keep_UT[:, protected.sinks : last] |= Candidates(across_UT[:, protected.sinks : last].contiguous()).best(across)
        return keep_UT

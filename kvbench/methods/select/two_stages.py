"""Half of the tokens by score alone, the others also by what their values do to the output: CriticalKV."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.methods.base import LayerContext, Protected
from kvbench.methods.candidates import Candidates, HeadBudget
from kvbench.methods.fields import check_at_least, check_between, check_one_of
from kvbench.methods.output_norms import output_norms
from kvbench.methods.select.top_k import TopK


@dataclass(frozen=True)
class TwoStages(TopK):
    """The `first` share of a head's tokens by score, the others by (score + epsilon) * ||v W_O||_1.

    CriticalKV (Feng et al. 2025, arXiv 2502.03805); the norm is the mean over the query heads of a KV head.

    Args:
        first: share of the first stage, in [0, 1].
        epsilon: what a token without a score counts.
        share_of: "selected": of the tokens that are chosen; "kept": of all kept ones, in which the tokens that are
            always kept come first, as in kvpress.
    """

    first: float = 0.5
    epsilon: float = 1e-4
    share_of: str = "selected"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_between(self, "first", 0, 1)
        check_at_least(self, "epsilon", 0)
        check_one_of(self, "share_of", ("selected", "kept"))

    @property
    def needs(self) -> frozenset[str]:
        """The model's output projection."""
        return frozenset({"model"})

    def __call__(
        self, ctx: LayerContext, candidates: Candidates | None, budget: HeadBudget | None, protected: Protected
    ) -> Tensor:
        """Return the keep mask [U, T]."""
        assert candidates is not None and budget is not None
        counts = candidates.counts(budget)
        always = protected.total if self.share_of == "kept" else 0
        first_U1 = torch.tensor([[int((count + always) * self.first) - always] for count in counts])
        norm_UN = output_norms(ctx)[:, protected.sinks : ctx.num_tokens - protected.window]
        second_UN = (candidates.values_UN + self.epsilon) * norm_UN
        second_UN = second_UN.masked_fill(candidates.rank_UN < first_U1.to(second_UN.device), torch.inf)
        return super().__call__(ctx, Candidates(second_UN), counts, protected)

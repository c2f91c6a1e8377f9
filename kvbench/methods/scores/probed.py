"""Scores from forward passes of the method's own."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kvbench.methods.base import LayerContext, Score
from kvbench.methods.probing import Probe


@dataclass(frozen=True)
class Probed(Score):
    """The scores that `probe` found; 0 for a prompt without a pass."""

    probe: Probe

    @property
    def needs(self) -> frozenset[str]:
        """The results of probes."""
        return frozenset({"probed"})

    def __call__(self, ctx: LayerContext) -> Tensor:
        """Return [U, T] scores. Raises KeyError if another probe ran."""
        score_UT: Tensor | None = ctx.probed[self.probe]
        return ctx.k.new_zeros(ctx.k.shape[:2]).float() if score_UT is None else score_UT

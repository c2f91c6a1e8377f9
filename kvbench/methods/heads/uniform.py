"""Equal budgets for the KV heads of a layer."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.methods.base import Heads
from kvbench.methods.candidates import Candidates, HeadSplit


@dataclass(frozen=True)
class Uniform(Heads):
    """Equal budgets for all KV heads of a layer; odd tokens go to the lower heads."""

    def __call__(self, candidates: Candidates, total: int) -> HeadSplit:
        """Return the candidates to keep per KV head, as a rule."""
        return HeadSplit(total, "head")

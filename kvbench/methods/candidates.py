"""The tokens of a layer that may be evicted, and how a budget is split over the KV heads they belong to.

Shape suffixes: U KV heads, N candidate tokens.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from kvbench.methods.kernels import Kernels
from kvbench.methods.memo import Memo
from kvbench.methods.rounding import apportion


@dataclass(frozen=True)
class HeadSplit:
    """A split of `total` candidates over the KV heads of a layer, by one of the two rules that kernels know.

    A head part returns it in place of numbers, so that a GPU need not send the numbers to the host first. It is data:
    a part that computes its own numbers returns those, and no kernel can bypass it.

    Attributes:
        total: candidates to keep, summed over the heads.
        scope: "head" gives every head the same, the odd tokens to the lower heads. "layer" gives a head
            (1 - floor) * f + floor * total / U, where f is how many of the layer's best `total` candidates it holds.
        floor: share of `total` that is split evenly, for scope "layer".
    """

    total: int
    scope: Literal["head", "layer"]
    floor: float = 0.0


HeadBudget = HeadSplit | Sequence[int]
"""Candidates to keep per KV head: as [U] numbers on the host, or as a rule."""


@dataclass(eq=False)
class Candidates:
    """Scores of the tokens that may be evicted, with their orders computed once for all variants.

    `values_UN` holds the columns of the scores without the tokens that are always kept. Ties go to the lower position,
    and in the order over all heads to the lower head.
    """

    values_UN: Tensor
    kernels: Kernels | None = None
    memo: Memo = field(default_factory=Memo)

    @property
    def order_UN(self) -> Tensor:
        """Candidate positions of each head by descending score."""
        return self.memo("order", lambda: self.values_UN.argsort(dim=-1, descending=True, stable=True))

    @property
    def rank_UN(self) -> Tensor:
        """Rank of each candidate within its head, 0 = best."""
        return self.memo("rank", self._rank)

    def _rank(self) -> Tensor:
        order_UN = self.order_UN
        ranks = torch.arange(order_UN.shape[1], device=order_UN.device)
        return torch.empty_like(order_UN).scatter_(1, order_UN, ranks.expand_as(order_UN))

    def heads_by_rank(self, scale_U: Tensor | None = None, key: Hashable = None) -> Tensor:
        """Return the head of every candidate of the layer, best first: [U * N].

        Args:
            scale_U: weights of the heads' scores; `key` names them, equal keys share one computation.
        """
        return self.memo(("heads", key), lambda: self._heads_by_rank(scale_U))

    def best_mass(self, count: int) -> Tensor:
        """Return the share [U] of each head's scores that its best `count` candidates hold.

        A head whose attention lies in the window alone has no scores, and its share is 0.
        """
        held_U = self.values_UN.gather(1, self.order_UN[:, :count]).sum(1)
        return held_U / self.values_UN.sum(1).clamp_min(torch.finfo(self.values_UN.dtype).tiny)

    def _heads_by_rank(self, scale_U: Tensor | None) -> Tensor:
        values = self.values_UN if scale_U is None else self.values_UN * scale_U[:, None]
        return values.flatten().argsort(descending=True, stable=True) // max(1, self.values_UN.shape[1])

    def counts(self, budget: HeadBudget) -> list[int]:
        """Return the number of candidates that each head keeps, [U] on the host."""
        if not isinstance(budget, HeadSplit):
            return list(budget)
        heads, count = self.values_UN.shape
        if budget.scope == "head":
            return [budget.total // heads + (head < budget.total % heads) for head in range(heads)]
        held_U = torch.bincount(self.heads_by_rank()[: budget.total], minlength=heads)
        even = budget.floor * budget.total / heads
        return apportion([(1 - budget.floor) * held + even for held in held_U.tolist()], budget.total, limit=count)

    def best(self, budget: HeadBudget) -> Tensor:
        """Return the mask [U, N] of each head's best candidates, as many as `budget` gives it."""
        # kernels read float32 alone; other scores, rounded to it, would tie
        if self.kernels is not None and isinstance(budget, HeadSplit) and self.values_UN.dtype == torch.float32:
            return self.kernels.select(self.values_UN, budget.total, budget.floor, budget.scope)
        return self.rank_UN < torch.tensor(self.counts(budget), device=self.values_UN.device)[:, None]

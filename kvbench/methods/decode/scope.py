"""SCOPE (Wu et al. 2024, arXiv 2412.13649): the kept prompt is frozen; generated tokens have a budget of their own.

Shape suffixes: as in `kvbench.methods.decoding`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvbench.methods.decode.schedule import GrowingBudget
from kvbench.methods.fields import check_one_of
from kvbench.methods.scores.groups import REDUCTIONS, reduce_group
from kvbench.methods.slots import Slots


@dataclass(frozen=True)
class FrozenPrompt(GrowingBudget):
    """A policy for generated tokens alone: the recent ones stay, and of the others those the newest query attends to.

    Args:
        reduce: how the query heads of a KV head are combined: mean, max or sum.
    """

    reduce: str = "mean"
    reads: ClassVar[str] = "last"
    remembers: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of(self, "reduce", REDUCTIONS)

    def observe(self, slots: Slots, weights_BUGTC: Tensor) -> None:
        """Remember the attention of the newest query."""
        slots.state_BUC[:] = reduce_group(weights_BUGTC[:, :, :, -1], self.reduce, dim=2)

    def drop(self, slots: Slots) -> Tensor:
        """Return that attention; prompt tokens and the recent ones stay."""
        return slots.state_BUC.masked_fill(~slots.generated() | slots.recent(self.recent), torch.inf)

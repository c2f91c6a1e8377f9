"""SCOPE (Wu et al. 2024, arXiv 2412.13649): the kept prompt is frozen; generated tokens have a budget of their own.

Shape suffixes: as in `kvbench.methods.decoding`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvbench.methods.decoding import DecodePolicy, Slots
from kvbench.methods.fields import InvalidField, check_at_least, check_one_of
from kvbench.methods.scores.groups import REDUCTIONS, reduce_group


@dataclass(frozen=True)
class FrozenPrompt(DecodePolicy):
    """A policy for generated tokens alone: the recent ones stay, and of the others those the newest query attends to.

    Args:
        tokens: generated tokens that a head holds.
        recent: the newest of them, which always stay.
        every: 0 for SCOPE's slide; else its adaptive schedule: the budget begins at `recent` and grows by a token every
            `every` steps, up to `tokens`.
        reduce: how the query heads of a KV head are combined: mean, max or sum.
    """

    tokens: int = 512
    recent: int = 256
    every: int = 0
    reduce: str = "mean"
    reads: ClassVar[str] = "last"
    adds_to_prompt: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("recent", "every"):
            check_at_least(self, name, 0)
        check_one_of(self, "reduce", REDUCTIONS)
        if self.tokens <= self.recent:
            raise InvalidField("tokens", self.tokens, "must be larger than {recent}", recent=self.recent)

    def limit(self, base_BU: Tensor, steps_B1: Tensor, layer: int, span_B1: Tensor) -> Tensor:
        """Return the tokens that a head may hold: those of the prompt, and its generated ones."""
        grown = self.tokens if not self.every else (self.recent + (steps_B1 - 1) // self.every).clamp(max=self.tokens)
        return base_BU + grown

    def observe(self, slots: Slots, weights_BUGTC: Tensor) -> None:
        """Remember the attention of the newest query."""
        slots.state_BUC[:] = reduce_group(weights_BUGTC[:, :, :, -1], self.reduce, dim=2)

    def drop(self, slots: Slots) -> Tensor:
        """Return that attention; prompt tokens and the recent ones stay."""
        return slots.state_BUC.masked_fill(~slots.generated() | slots.recent(self.recent), torch.inf)

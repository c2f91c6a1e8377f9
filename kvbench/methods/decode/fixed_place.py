"""Drops at a fixed place of the cache that keep the prompt's drop ratio: PrefixKV and Elastic Cache.

Shape suffixes: as in `kvbench.methods.decoding`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvbench.methods.decoding import DecodePolicy, Start
from kvbench.methods.fields import check_allocation
from kvbench.methods.slots import Slots


@dataclass(frozen=True)
class DropAtPlace(DecodePolicy):
    """A policy that keeps a head's drop ratio, and drops the token at a place that was fixed after the prefill.

    Elastic Cache (Liu et al. 2024, arXiv 2407.18121) and PrefixKV (Wang et al. 2024, arXiv 2412.03409). Of all tokens
    seen a head holds the share that it kept of the prompt, rounded up. Tokens before the place never leave; of those
    from there on the oldest does.

    Args:
        distance: the place, counted from the end of the kept prompt if it is not positive. A head that is too short
            for it has the place in its middle.
        allocation: exact computes the share in integers; reference in floats, which may round up once more.
    """

    distance: int = -25
    allocation: str = "exact"
    adds_to_prompt: ClassVar[bool] = True
    phases: ClassVar[Sequence[str]] = ("both", "prefill")  # the place follows from what the prefill kept

    def __post_init__(self) -> None:
        check_allocation(self)

    def limit(self, base_BU: Tensor, steps_B1: Tensor, layer: int, span_B1: Tensor) -> Tensor:
        """Return the share of all tokens seen."""
        seen_B1 = span_B1 + steps_B1
        if self.allocation == "exact":
            return (seen_B1 * base_BU + span_B1 - 1) // span_B1
        return (seen_B1 * (1 - (span_B1 - base_BU).double() / span_B1)).ceil().long()

    def begin(self, start: Start) -> Tensor:
        """Return the state: 1 for the tokens before the place."""
        kept_U1 = start.live_UC.sum(1, keepdim=True)
        end_U1 = torch.where(kept_U1 + self.distance < 1, kept_U1 // 2, kept_U1 + self.distance)
        place_U1 = kept_U1.clamp(max=self.distance) if self.distance > 0 else end_U1
        return (start.live_UC.cumsum(1) <= place_U1).float()

    def drop(self, slots: Slots) -> Tensor:
        """Return the positions: older tokens are worth less, and those before the place stay."""
        return slots.pos_BUC.float().masked_fill(slots.state_BUC > 0, torch.inf)

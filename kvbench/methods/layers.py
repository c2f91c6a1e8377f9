"""Layer budgets: how many tokens each layer may keep, summed over its KV heads.

All allocators keep the sum exact unless `allocation` says `reference`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvbench.methods.base import Ask
from kvbench.methods.rounding import apportion, largest_remainder


class _WithoutStatistics:
    """Layer budgets that depend on the prompt's length alone."""

    needs_statistics: ClassVar[bool] = False

    def statistic(self, score_UT: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} wants no statistics")


@dataclass(frozen=True)
class Uniform(_WithoutStatistics):
    """Every layer the same."""

    def __call__(self, ask: Ask) -> list[int]:
        return [ask.tokens * ask.heads] * ask.layers


@dataclass(frozen=True)
class Pyramid(_WithoutStatistics):
    """An arithmetic sequence from many tokens in the first layer to few in the last.

    PyramidKV (Cai et al. 2024, arXiv 2406.02069). The end points are the reference's: the last layer selects
    `base // beta`, the first as much above `base` as the last is below, clipped to what exists.
    `exact` takes the real-valued steps between them and rounds by largest remainder; `reference` floors the step,
    which adds up to 15 % to the total.

    Args:
        beta: steepness; the last layer selects 1 / beta of the average.
        allocation: exact or reference.
        uniform_when_short: as in KVCache-Factory, prompts shorter than twice the selected tokens get equal layers;
            Ada-KV's pyramid has no such branch.
    """

    beta: int = 20
    allocation: str = "exact"
    uniform_when_short: bool = True

    def __call__(self, ask: Ask) -> list[int]:
        base = ask.tokens - ask.protected
        if ask.layers == 1 or (self.uniform_when_short and ask.span < 2 * base):
            return [ask.tokens * ask.heads] * ask.layers
        low = base // self.beta
        high = min(2 * base - low, ask.span - ask.protected)
        low = 2 * base - high
        if self.allocation == "reference":
            step = (high - low) // (ask.layers - 1)
            selected = [high - index * step for index in range(ask.layers)]
        else:
            selected = largest_remainder(
                [high - index * (high - low) / (ask.layers - 1) for index in range(ask.layers)], ask.layers * base
            )
        return [(count + ask.protected) * ask.heads for count in selected]


@dataclass(frozen=True)
class CumulativeMass:
    """Layers keep what holds the same share of their importance: PrefixKV (Wang et al. 2024, arXiv 2412.03409).

    Sort each layer's normalised scores; a binary search finds the mass p at which dropping the rest of every layer
    meets the budget to within 5 tokens; the drops are then scaled to the budget. The reference does this offline on
    calibration prompts, here it is done on the prompt itself. Needs the scores of all layers.

    Args:
        allocation: exact scales by largest remainder, so that the budget is met; reference truncates.
    """

    allocation: str = "exact"
    needs_statistics: ClassVar[bool] = True
    _TOLERANCE: ClassVar[int] = 5

    def statistic(self, score_UT: Tensor) -> Tensor:
        """The layer's [T] importance that `__call__` wants of every layer."""
        return score_UT.double().mean(0)

    def __call__(self, ask: Ask) -> list[int]:
        if ask.layers == 1:
            return [ask.tokens * ask.heads]
        if ask.statistics is None or len(ask.statistics) != ask.layers:
            raise ValueError(
                f"layer budgets by cumulative mass need layer_scores of all {ask.layers} layers; see keep_layers"
            )
        mass_LT = torch.stack([s.detach().cpu().double() for s in ask.statistics])
        mass_LT = mass_LT.sort(dim=-1, descending=True).values
        cdf_LT = (mass_LT / mass_LT.sum(-1, keepdim=True)).cumsum(-1)
        target = ask.layers * (ask.span - ask.tokens)
        most = ask.span - ask.protected
        dropped = self._search(cdf_LT, target, most)
        if self.allocation == "exact":
            dropped = apportion(dropped, target, most)
        else:
            found = max(1, sum(dropped))
            dropped = [min(most, count * target // found) for count in dropped]
        return [(ask.span - count) * ask.heads for count in dropped]

    def _search(self, cdf_LT: Tensor, target: int, most: int) -> list[int]:
        low, high = 0.0, 1.0
        dropped: list[int] = []
        for _ in range(60):
            mid = (low + high) / 2
            point = torch.full((cdf_LT.shape[0], 1), mid, dtype=cdf_LT.dtype)
            kept = torch.searchsorted(cdf_LT, point)[:, 0] + 1
            dropped = (most - kept).clamp(min=0).tolist()
            if abs(sum(dropped) - target) < self._TOLERANCE:
                break
            low, high = (low, mid) if sum(dropped) < target else (mid, high)
        return dropped

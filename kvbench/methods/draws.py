"""Random numbers that follow from what they are for alone: the same ones on any device and in any batch."""

from __future__ import annotations

import torch
from torch import Tensor

_STEP = 0x9E3779B97F4A7C15 - 2**64  # the constants of SplitMix64 (Steele et al. 2014), as signed numbers
_MIX = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))


def uniform(*counters: Tensor | int, state: Tensor | int = 0) -> Tensor:
    """Return float32 numbers in [0, 1), one for each combination of integers; the counters broadcast.

    Args:
        counters: the first is a seed.
        state: what `stirred` returned for counters that come before these.
    """
    return ((stirred(*counters, state=state) >> 40) & (2**24 - 1)).float() * 2.0**-24


def stirred(*counters: Tensor | int, state: Tensor | int = 0) -> Tensor:
    """Return an int64 for each combination of integers. Products overflow, as they should."""
    x = torch.as_tensor(state)
    for counter in counters:
        x = _mixed((x ^ counter) + _STEP)
    return x


def _mixed(x: Tensor) -> Tensor:
    for shift, factor in _MIX:
        x = (x ^ _shifted(x, shift)) * factor
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, shift: int) -> Tensor:
    """Shift to the right without copies of the sign."""
    shifted: Tensor = (x >> shift) & (2 ** (64 - shift) - 1)
    return shifted

"""H2O with positions within the cache, as in its code for streaming (Zhang et al. 2023, arXiv 2306.14048)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvbench.methods.decode.accumulate import AccumulateAndEvict


@dataclass(frozen=True)
class RollingHeavyHitters(AccumulateAndEvict):
    """Heavy hitters and recent tokens, whose positions are 0, 1, 2, ... in the order in which they arrived.

    The authors' code holds keys without rotation and rotates all of them in every step.
    """

    turns: ClassVar[bool] = True
    turns_all: ClassVar[bool] = True

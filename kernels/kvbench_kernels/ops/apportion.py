"""Apportionment: a layer's budget is split over its heads in integers whose sum is exact. `select` uses it.

The rule is the one in kvbench/methods/rounding.py, which this package must not import. A test compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import reduce
from operator import add


def apportion(weights: Sequence[float], total: int, limit: int) -> list[int]:
    """Split `total` in proportion to `weights`, with at most `limit` for each head.

    What a full head cannot take goes to the others. If the others all have weight 0, the rest is split evenly.

    Raises:
        ValueError: `total` is negative, or does not fit.
    """
    if not 0 <= total <= limit * len(weights):
        raise ValueError(
            f"total={total}: must be from 0 to {limit * len(weights)}, {limit} for each of {len(weights)} heads"
        )
    shares = [float(limit)] * len(weights)
    open_ = list(range(len(weights)))
    rest = float(total)
    while open_:
        mass = _sum(weights[i] for i in open_)
        parts = [rest * weights[i] / mass if mass > 0 else rest / len(open_) for i in open_]
        below = [i for i, part in zip(open_, parts, strict=True) if part < limit]
        if len(below) == len(open_):
            for i, part in zip(open_, parts, strict=True):
                shares[i] = part
            break
        rest = float(total - limit * (len(weights) - len(below)))
        open_ = below
    return largest_remainder(shares, total)


def largest_remainder(shares: Sequence[float], total: int) -> list[int]:
    """Round `shares`, which sum to `total`, by the method of the largest remainder.

    Every index gets its floor, those with the largest remainders one more, the lower index first where they tie.
    Remainders count to six digits: finer than any share, coarser than the error of the arithmetic.
    """
    floors = [math.floor(share + 1e-6) for share in shares]
    remainders = [round(share - low, 6) for share, low in zip(shares, floors, strict=True)]
    ranked = sorted(range(len(shares)), key=lambda i: (-remainders[i], i))
    for i in ranked[: total - sum(floors)]:
        floors[i] += 1
    return floors


def _sum(values: Iterable[float]) -> float:
    """Add in order, as the kernel does. From Python 3.12 on, `sum` compensates its rounding errors."""
    return reduce(add, values, 0.0)

"""Rounding of real-valued shares to integers whose sum is exact."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache, reduce
from operator import add


def largest_remainder(shares: Sequence[float], total: int) -> list[int]:
    """Round `shares`, which sum to `total`, to integers that sum to it as well.

    Every share is rounded down; the missing units go one each to the largest fractional parts, ties to the lower index.
    """
    # 1e-6 absorbs rounding errors of float arithmetic just below an integer; no share is that fine.
    floors = [math.floor(share + 1e-6) for share in shares]
    missing = total - sum(floors)
    remainders = [round(share - low, 6) for share, low in zip(shares, floors, strict=True)]
    for index in sorted(range(len(shares)), key=lambda i: (-remainders[i], i))[:missing]:
        floors[index] += 1
    if sum(floors) != total:
        raise AssertionError(f"shares {list(shares)} do not sum to {total}")
    return floors


def apportion(weights: Sequence[float], total: int, limit: int) -> list[int]:
    """Split `total` in proportion to `weights`, none above `limit`; what a full part cannot take goes to the others.

    Once all remaining weights are 0, the rest is split evenly. Requires total <= limit * len(weights).
    """
    return list(_apportioned(tuple(weights), total, limit))


@lru_cache(maxsize=256)  # every layer of a prompt may ask for the same
def _apportioned(weights: tuple[float, ...], total: int, limit: int) -> list[int]:
    shares = [0.0] * len(weights)
    open_ = list(range(len(weights)))
    rest = float(total)
    while open_:
        mass = _sum(weights[i] for i in open_)
        parts = {i: rest * weights[i] / mass if mass > 0 else rest / len(open_) for i in open_}
        full = [i for i in open_ if parts[i] >= limit]
        if not full:
            for i in open_:
                shares[i] = parts[i]
            break
        for i in full:
            shares[i] = float(limit)
            open_.remove(i)
        rest = total - _sum(shares)
    return largest_remainder(shares, total)


def _sum(values: Iterable[float]) -> float:
    """Add one by one: `sum` compensates its rounding from Python 3.12 on, and kept tokens would depend on Python."""
    return reduce(add, values, 0.0)

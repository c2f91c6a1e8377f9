"""From real-valued weights to integers whose sum is exact: what `select` does with a layer's budget.

The rule is that of the methods (kvbench/methods/rounding.py), which this package cannot import; the tests compare.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import reduce
from operator import add


def apportion(weights: Sequence[float], total: int, limit: int) -> list[int]:
    """Split `total` in proportion to `weights`, nobody above `limit`; what a full one cannot take goes to the others.

    With no weight left to go by, the rest is split evenly.

    Raises:
        ValueError: there is not room for `total`.
    """
    if not 0 <= total <= limit * len(weights):
        raise ValueError(f"total={total}: {len(weights)} heads with room for {limit} each")
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
    """Added one by one, as the kernel does: `sum` compensates its rounding from Python 3.12 on."""
    return reduce(add, values, 0.0)

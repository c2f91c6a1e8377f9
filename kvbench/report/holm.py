"""Tests of paired differences: sign-flip tests, and Holm's correction for several of them.

If two methods are equally good, every paired difference could as well have had the other sign. The p-value is the share
of all choices of signs for which the mean difference is at least as far from 0 as the measured one (Fisher, 1935). The
questions on one context have one sign together. Up to 13 differences that are not 0, all signs are gone through. For
more, only the signs of the six largest are, and the sum of the others with random signs is taken as normal: no
p-value is limited by a number of draws, which matters when hundreds of comparisons are corrected together. Right and
wrong answers have sums on a grid, so the normal part gets the continuity correction of half a step.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ALPHA = 0.05
_EXACT = 13  # differences up to which all 2^n signs are gone through
_LARGEST = 6  # of more differences: those whose signs are gone through
_TIE = 1e-9  # relative; sums that differ by less are equal
_PARTS = 12  # a grid's step is the smallest difference, or up to a 12th of it
_BLOCK = 256  # rows whose sums are in memory at a time


def p_values(contributions: Floats) -> Floats:
    """Return [rows] two-sided p-values of [rows, clusters] contributions to a mean.

    A cluster's contribution is the sum of its differences over the number of all differences; in an average over
    datasets, times the weight of the dataset.
    """
    starts = range(0, len(contributions), _BLOCK)
    return np.concatenate([np.empty(0), *(_p_values(contributions[at : at + _BLOCK]) for at in starts)])


def _p_values(contributions: Floats) -> Floats:
    sizes = -np.sort(-np.abs(contributions), axis=-1)
    sums, total = np.abs(contributions.sum(-1)), sizes.sum(-1)
    limits = sums - _TIE * total
    has_more = (sizes[:, _EXACT:] > _TIE * total[:, None]).any(-1)
    p, few = np.empty(len(sizes)), sizes[~has_more, :_EXACT]
    p[~has_more] = (np.abs(few @ _signs(few.shape[1]).T) >= limits[~has_more, None]).mean(-1)
    for row in np.flatnonzero(has_more).tolist():
        largest, others = sizes[row, :_LARGEST], sizes[row, _LARGEST:]
        distances = (sums[row] - _half_step(sizes[row]) - _signs(_LARGEST) @ largest) / math.sqrt(2 * (others @ others))
        p[row] = min(1.0, sum(map(math.erfc, distances.tolist())) / len(distances))
    return p


@cache
def _signs(number: int) -> Floats:
    """Return all [2^number, number] choices of signs."""
    return np.asarray(2.0 * (np.arange(2**number)[:, None] >> np.arange(number) & 1) - 1)


def _half_step(sizes: Floats) -> float:
    """Return half the step of the grid on which the sums of such differences lie, whatever their signs; 0 if none."""
    known = sizes[sizes > _TIE * sizes.sum()]
    for parts in range(1, _PARTS + 1):
        multiples = known * (parts / known[-1])
        if np.abs(multiples - np.rint(multiples)).max() < 1e-6 * parts:
            return float(known[-1] / parts)
    return 0.0


def holm(p: Floats) -> Floats:
    """Return p-values corrected for all of them being looked at (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(1.0, stepped)
    return corrected

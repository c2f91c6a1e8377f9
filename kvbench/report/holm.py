"""Tests of paired differences: sign-flip tests, and Holm's correction for several of them.

If two methods are equally good, every paired difference could as well have had the other sign. The p-value is the share
of all choices of signs for which the mean difference is at least as far from 0 as the measured one (Fisher, 1935). The
questions on one context have one sign together. Up to 13 contexts all signs are gone through. For more, the sum of
random signs is taken as normal: its tails are no heavier (Hoeffding, JASA 58, 1963), and no p-value is limited by a
number of draws, which matters when hundreds of comparisons are corrected together.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ALPHA = 0.05
_EXACT = 13  # contexts up to which all 2^n signs are gone through
_TIE = 1e-9  # relative; sums that differ by less are equal


def p_values(contributions: Floats) -> Floats:
    """Return [rows] two-sided p-values of [rows, clusters] contributions to a mean.

    A cluster's contribution is the sum of its differences over the number of all differences; in an average over
    datasets, times the weight of the dataset.
    """
    sums = np.abs(contributions.sum(-1))
    if contributions.shape[-1] <= _EXACT:
        number = contributions.shape[-1]
        signs = 2.0 * (np.arange(2**number)[:, None] >> np.arange(number) & 1) - 1
        limits = sums - _TIE * np.abs(contributions).sum(-1)
        return np.asarray((np.abs(contributions @ signs.T) >= limits[:, None]).mean(-1))
    spread = np.sqrt((contributions**2).sum(-1))
    distance = np.divide(sums, spread, out=np.zeros_like(sums), where=spread > 0)
    return np.array([math.erfc(value / math.sqrt(2)) for value in distance.tolist()])


def holm(p: Floats) -> Floats:
    """Return p-values corrected for all of them being looked at (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(1.0, stepped)
    return corrected

"""Bootstrap distributions of means, and how much wider than they are the interval of few samples has to be.

The mean is taken again over resamples of the samples (Efron, 1979). Where several questions share a context, contexts
are resampled together with their questions (Field and Welsh, JRSS B 69, 2007), because questions on one text are not
independent. `kvbench.report.bca` makes intervals of these means.

A bootstrap interval of few samples is too narrow: its spread lacks the factor n / (n - 1), and its quantiles are those
of a normal distribution. `stretch` is the factor for both, after Hesterberg ("What teachers should know about the
bootstrap", 2015): 1.009 for 200 samples, 1.10 for 20.

All random numbers come from fixed seeds, so that a store always gives the same interval. The resamples of a dataset
depend on its name alone, not on the other rows and columns of a table.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 9999
NORMAL = 1.959964  # 97.5 % quantile of the normal distribution: intervals are those of 95 %
_SEED = 20260101
_BLOCK = 2**21  # drawn numbers that are in memory at a time
# 97.5 % quantiles of Student's t by degrees of freedom; between them, interpolation in 1 / degrees of freedom
_QUANTILES = {
    1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 6: 2.4469, 7: 2.3646, 8: 2.3060, 10: 2.2281, 12: 2.1788,
    15: 2.1314, 20: 2.0860, 30: 2.0423, 60: 2.0003, 120: 1.9799, np.inf: 1.9600,
}  # fmt: skip


def generator(name: str) -> np.random.Generator:
    """Return the random numbers of a dataset; different datasets get independent ones."""
    return np.random.default_rng([_SEED, zlib.crc32(name.encode("utf-8", "surrogatepass"))])


def resamples(number: int, random: np.random.Generator, draws: int = RESAMPLES) -> NDArray[np.uint8]:
    """Return [draws, number] how often each of `number` clusters is in each resample.

    The resamples are those of the next `random.integers(0, number, (draws, number))`.
    """
    counts = np.empty((draws, number), dtype=np.uint8)
    block = max(1, _BLOCK // max(1, number))
    for start in range(0, draws, block):
        drawn = random.integers(0, number, (min(block, draws - start), number))
        flat = (drawn + number * np.arange(len(drawn))[:, None]).ravel()
        counts[start : start + len(drawn)] = np.bincount(flat, minlength=number * len(drawn)).reshape(drawn.shape)
    return counts


def distribution(sums: Floats, sizes: Floats, counts: NDArray[np.uint8]) -> Floats:
    """Return [rows, draws] means over resampled clusters.

    Args:
        sums: [rows, clusters] sums of values; a cluster is a context, or a sample that shares its context with none.
        sizes: [rows, clusters] numbers of values; 0 where a row has none. [1, clusters] if they are the same for all.
        counts: [draws, clusters], see `resamples`.
    """
    means = np.empty((len(sums), len(counts)))
    block = max(1, _BLOCK // max(1, counts.shape[1]))
    for start in range(0, len(counts), block):
        weights = counts[start : start + block].T.astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            means[:, start : start + block] = (sums @ weights) / (sizes @ weights)
    if not np.isfinite(means).all():  # a resample without any value of a row that has few
        whole = sums.sum(-1, keepdims=True) / sizes.sum(-1, keepdims=True)
        means = np.where(np.isfinite(means), means, whole)
    return means


def variances(sums: Floats, sizes: Floats) -> tuple[Floats, Floats]:
    """Return [rows] variances of the bootstrap distribution of a mean, and [rows] numbers of clusters with values."""
    total = sizes.sum(-1, keepdims=True)
    residuals = sums - sums.sum(-1, keepdims=True) / total * sizes
    number: Floats = np.broadcast_to((sizes > 0).sum(-1).astype(np.float64), len(sums))
    return np.asarray((residuals**2).sum(-1) / total[..., 0] ** 2), number


def stretch(parts: Sequence[tuple[Floats, Floats]]) -> Floats:
    """Return [rows] factors by which the bootstrap interval of a weighted sum of means is too narrow; at least 1.

    parts: of each mean the [rows] variance of its share in the sum, and the [rows] number of clusters, see `variances`.
        Means of at most one cluster do not count. Degrees of freedom are Satterthwaite's (Biometrics Bulletin 2, 1946).
    """
    plain, whole, squares = (np.zeros_like(parts[0][0]) for _ in range(3))
    for variance, number in parts:
        spare = np.maximum(number - 1, 1)
        corrected = variance * number / spare
        plain, whole, squares = plain + variance, whole + corrected, squares + corrected**2 / spare
    has_spread = plain > 0
    freedom = np.divide(whole**2, squares, out=np.full_like(plain, np.inf), where=has_spread)
    ratio = np.sqrt(np.divide(whole, plain, out=np.ones_like(plain), where=has_spread))
    return np.asarray(np.maximum(1.0, ratio * _quantiles(np.maximum(freedom, 1)) / NORMAL))


def _quantiles(freedom: Floats) -> Floats:
    inverse = [1 / known for known in _QUANTILES]
    return np.interp(1 / np.asarray(freedom), inverse[::-1], list(_QUANTILES.values())[::-1])

"""BCa intervals: bootstrap intervals corrected for bias and skewness (Efron, JASA 82, 1987).

The bounds are quantiles of the bootstrap distribution, at levels that are moved by two numbers: the bias, read off the
share of resampled means below the mean, and the acceleration, the skewness that the jackknife of the clusters shows.
`scipy.stats.bootstrap(..., method="BCa")` gives the same numbers on the same resamples, also for a mean over several
datasets that are resampled independently.

Rows are independent. All arrays are float64.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from kvbench.report.bootstrap import NORMAL, Floats

_NORMAL = NormalDist()
_TIE = 1e-12  # means that differ by less are equal: the order in which a machine sums must not matter
_EXPANDED = 1.25  # largest factor that expands the level, then to 98.6 %, which resamples of nine samples still reach


def influences(sums: Floats, sizes: Floats) -> tuple[Floats, Floats]:
    """Return [rows] sums of squares and [rows] sums of cubes of the jackknife's influences on a mean.

    The influence of a cluster is (1 - 1 / n) times how far the mean without it lies below the average of such means,
    with n clusters that have values.

    sums, sizes: see `kvbench.report.bootstrap.distribution`.
    """
    total, size = sums.sum(-1, keepdims=True), sizes.sum(-1, keepdims=True)
    counts = sizes > 0
    number = np.maximum(counts.sum(-1, keepdims=True), 1)
    rest = size - sizes
    others = np.divide(total - sums, rest, out=np.zeros_like(sums), where=counts & (rest > 0))
    each = (others.sum(-1, keepdims=True) / number - others) * ((number - 1) / number)
    each *= counts
    squares = each**2
    return squares.sum(-1), (squares * each).sum(-1)


def acceleration(squares: Floats, cubes: Floats) -> Floats:
    """Return [rows] accelerations of a mean; 0 without spread. At most 1/6 in size.

    squares, cubes: [rows] see `influences`. For a weighted sum of independent means: the sums of both over the means,
        times the square and the cube of the weight.
    """
    return np.divide(cubes, 6 * np.maximum(squares, 0) ** 1.5, out=np.zeros_like(squares), where=squares > 1e-24)


def bounds(means: Floats, estimates: Floats, accelerations: Floats, quantiles: Floats) -> Floats:
    """Return [2, rows] bounds of the BCa interval of [rows, resamples] means.

    quantiles: [rows] of the normal distribution, 1.96 for 95 %.

    Where all resampled means lie on one side of the estimate, half a resample counts as being on the other.
    """
    ordered = np.sort(means, axis=-1)
    at, resamples = estimates[:, None], means.shape[-1]
    below = (np.count_nonzero(ordered < at - _TIE, axis=-1) + np.count_nonzero(ordered <= at + _TIE, axis=-1)) / 2
    shares = np.clip(below / resamples, 0.5 / resamples, 1 - 0.5 / resamples)
    bias = np.array([_NORMAL.inv_cdf(share) for share in shares.tolist()])
    moved = (_levels(bias, accelerations, bias + side * quantiles) for side in (-1.0, 1.0))
    return np.stack([_at(ordered, levels) for levels in moved])


def stretched(means: Floats, estimates: Floats, accelerations: Floats, factors: Floats) -> Floats:
    """Return [2, rows] bounds of the 95 % interval for few samples: `factors` (`bootstrap.stretch`) times as wide.

    Factors up to 1.25 (nine samples or more) expand the level (Hesterberg, 2015): this is the BCa interval at the level
    whose normal quantile is 1.96 times the factor. Fewer samples have no resamples that far out: the interval of two
    samples would end at these two. There, the bounds of the 95 % interval are moved away from the mean.
    """
    is_expanded = factors <= _EXPANDED
    plain = bounds(means, estimates, accelerations, NORMAL * np.where(is_expanded, factors, 1.0))
    low, high = np.where(is_expanded, plain, estimates + (plain - estimates) * factors)
    return np.stack([np.minimum(low, estimates), np.maximum(high, estimates)])


def _levels(bias: Floats, accelerations: Floats, quantiles: Floats) -> Floats:
    """Return [rows] corrected levels. Beyond the pole of the correction they are 0 or 1, its limits."""
    slope = 1 - accelerations * quantiles
    corrected = np.divide(quantiles, slope, out=np.where(quantiles > 0, np.inf, -np.inf), where=slope > 0)
    return np.array([_NORMAL.cdf(value) for value in (bias + corrected).tolist()])


def _at(ordered: Floats, levels: Floats) -> Floats:
    """Return the quantiles of [rows, resamples] sorted means at [rows] levels, as `numpy.quantile` does."""
    places = levels * (ordered.shape[-1] - 1)
    lower = np.floor(places).astype(np.int64)
    upper, rows = np.minimum(lower + 1, ordered.shape[-1] - 1), np.arange(len(ordered))
    low, high = ordered[rows, lower], ordered[rows, upper]
    return np.asarray(low + (high - low) * (places - lower))

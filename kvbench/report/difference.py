"""Differences to the full cache: paired by sample, with 95 % bootstrap intervals.

A dataset's interval is a BCa interval over resampled contexts, see `kvbench.report.bca`. The interval of an average
resamples every dataset by itself and averages the resampled means. Where the spread is unknown there is no
interval: resampling a dataset of one sample would make it look certain.

The interval of a few samples is stretched, and could leave what a difference can be. It ends there: of scores from 0 to
1, at -1 and 1. It is not cut at what the baseline's measured mean would allow, as that mean is an estimate, too: where
the full cache is right on all six samples, another method may still be the better one, and intervals that exclude it
would miss the difference far more often than in 5 % of cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from kvbench.report.bca import acceleration, influences, stretched
from kvbench.report.bootstrap import RESAMPLES, distribution, generator, resamples, stretch, variances
from kvbench.report.paired import Matrix, by_cluster, matrix
from kvbench.store import RunNumbers

Floats = NDArray[np.float64]

ONE_SAMPLE, ONE_CONTEXT, NO_SPREAD = "1 sample", "1 context", "no spread"  # why there is no interval
_SIGNS = 6  # differences of one sign; that many happen by chance in less than 5% of cases
_BLOCK = 64  # rows whose distributions are in memory at a time

Average = Sequence[Sequence[str]]  # groups of columns: the mean over the groups of the means over their columns


class Difference(TypedDict):
    """A mean difference with its interval.

    Attributes:
        mean: of the differences; of an average over datasets, the mean of their means.
        low, high: 95% interval; None where it is unknown.
        reason: why it is unknown, one of `ONE_SAMPLE`, `ONE_CONTEXT` and `NO_SPREAD`.
        n: samples.
        significant: the interval excludes 0; without spread, at least six differences have one sign and none the other.
    """

    mean: float
    low: float | None
    high: float | None
    reason: str | None
    n: int
    significant: bool


@dataclass(frozen=True)
class ColumnScores:
    """The scores of a table's rows on one benchmark.

    Attributes:
        rows: positions in the table of the matrix's rows.
        top: the largest score that there can be, where the smallest is 0; None where that is unknown.
    """

    name: str
    rows: Sequence[int]
    matrix: Matrix
    top: float | None = None


@dataclass(frozen=True)
class _Part:
    """The differences of a column to the full cache, for all rows of the table; n = 0 where a row has none."""

    name: str
    sums: Floats  # [rows, clusters]
    sizes: Floats
    n: Floats  # [rows]
    mean: Floats
    variance: Floats
    squares: Floats  # of the influences of clusters on the mean, as cubes
    cubes: Floats
    clusters: Floats
    up: Floats
    down: Floats
    reach: Floats  # the largest size that a difference can have; inf where that is unknown


def differences(
    columns: Sequence[ColumnScores], averages: Mapping[str, Average], rows: int, baseline: int, draws: int = RESAMPLES
) -> list[dict[str, Difference]]:
    """Return the differences of a table's rows to the row `baseline`, by column and by average.

    Only samples count that a row and the baseline have both answered, and only columns with such samples. Columns that
    a row does not share with the baseline are absent. The result for a row does not depend on the other rows.
    """
    parts = [part for column in columns if (part := _part(column, rows, baseline)) is not None]
    if not parts:
        return [{} for _ in range(rows)]
    counts = {part.name: resamples(part.sums.shape[1], generator(part.name), draws) for part in parts}
    weights = {key: _weights(parts, groups, rows) for key, groups in averages.items()}
    result: list[dict[str, Difference]] = [{} for _ in range(rows)]
    for start in range(0, rows, _BLOCK):
        block = slice(start, min(start + _BLOCK, rows))
        means = {key: np.zeros((block.stop - start, draws)) for key in averages}
        for at, part in enumerate(parts):
            filled = part.n[block] > 0
            if not filled.any():
                continue
            drawn = np.zeros((len(filled), draws))
            some = part.sizes[block][filled]
            alike = bool((some == some[:1]).all())
            drawn[filled] = distribution(part.sums[block][filled], some[:1] if alike else some, counts[part.name])
            _fill(result, start, part.name, [part], np.ones((1, rows)), drawn)
            for key, weight in weights.items():
                if weight[at, block].any():
                    means[key] += weight[at, block, None] * drawn
        for key, weight in weights.items():
            _fill(result, start, key, parts, weight, means[key])
    result[baseline] = {}
    return result


def _part(column: ColumnScores, rows: int, baseline: int) -> _Part | None:
    """Return the differences of a column; None where the baseline has no answer in it."""
    if baseline not in column.rows:
        return None
    at = list(column.rows).index(baseline)
    scores = column.matrix.among(at)
    if not scores.ids:
        return None
    sums, sizes = by_cluster(scores.scores - scores.scores[at], scores.clusters)
    every_sum, every_size = np.zeros((rows, sums.shape[1])), np.zeros((rows, sums.shape[1]))
    every_sum[list(column.rows)], every_size[list(column.rows)] = sums, sizes
    n = every_size.sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance, clusters = variances(every_sum, every_size)
        mean = every_sum.sum(-1) / n
    squares, cubes = influences(every_sum, every_size)
    variance, mean = np.where(n > 0, variance, 0.0), np.where(n > 0, mean, 0.0)
    tiny = 1e-12
    up, down = (every_sum > tiny).sum(-1).astype(np.float64), (every_sum < -tiny).sum(-1).astype(np.float64)
    reach = np.full(rows, np.inf)
    reach[list(column.rows)] = _reach(scores.scores, at, column.top)
    return _Part(column.name, every_sum, every_size, n, mean, variance, squares, cubes, clusters, up, down, reach)


def _reach(scores: Floats, baseline: int, top: float | None) -> Floats:
    """Return [rows] how large a difference to the row `baseline` can be; inf where a score is outside of 0 to `top`."""
    if top is None:
        return np.full(len(scores), np.inf)
    inside = np.asarray(((scores >= 0) & (scores <= top) | np.isnan(scores)).all(-1))
    return np.where(inside & inside[baseline], top, np.inf)


def _weights(parts: Sequence[_Part], groups: Average, rows: int) -> Floats:
    """Return [parts, rows] weights of an average over the columns that a row has; they sum to 1, or are all 0."""
    weights = np.zeros((len(parts), rows))
    filled = np.array([part.n > 0 for part in parts]).reshape(len(parts), rows)
    number = np.zeros(rows)
    for group in groups:
        members = np.array([part.name in group for part in parts], dtype=bool)[:, None] & filled
        count = members.sum(0)
        weights += np.divide(members, count, out=np.zeros((len(parts), rows)), where=count > 0)
        number += count > 0
    return np.divide(weights, number, out=np.zeros_like(weights), where=number > 0)


def _fill(
    result: list[dict[str, Difference]], start: int, key: str, parts: Sequence[_Part], weight: Floats, means: Floats
) -> None:
    """Add the difference `key` of the rows from `start` on, whose [rows, resamples] means are given."""
    block = slice(start, start + len(means))
    weight = weight[:, block]  # [parts, rows], as all that follows
    used = weight > 0
    n, up, down = (np.where(used, _stacked(parts, key_of, block), 0).sum(0) for key_of in ("n", "up", "down"))
    clusters = _stacked(parts, "clusters", block)
    mean = (weight * _stacked(parts, "mean", block)).sum(0)
    shares = weight**2 * _stacked(parts, "variance", block)
    variance = shares.sum(0)
    alone = (used & (clusters == 1)).any(0)
    single = (used & (_stacked(parts, "n", block) == 1)).any(0)
    one_sided = (np.maximum(up, down) >= _SIGNS) & (np.minimum(up, down) == 0)
    squares = (weight**2 * _stacked(parts, "squares", block)).sum(0)
    cubes = (weight**3 * _stacked(parts, "cubes", block)).sum(0)
    factors = stretch(list(zip(shares, clusters, strict=True)))
    reach = (weight * np.where(used, _stacked(parts, "reach", block), 0)).sum(0)
    low, high = np.clip(stretched(means, mean, acceleration(squares, cubes), factors), -reach, reach)
    for at in np.flatnonzero(n > 0).tolist():
        entry: Difference = {
            "mean": _rounded(mean[at]),
            "low": None,
            "high": None,
            "reason": None,
            "n": int(n[at]),
            "significant": False,
        }
        if alone[at]:
            entry["reason"] = ONE_SAMPLE if single[at] else ONE_CONTEXT
        elif variance[at] <= 1e-24:  # the differences within a dataset are equal, but for rounding
            entry |= {"reason": NO_SPREAD, "significant": bool(one_sided[at])}
        else:
            bounds = _rounded(low[at]), _rounded(high[at])
            entry |= {"low": bounds[0], "high": bounds[1], "significant": not bounds[0] <= 0 <= bounds[1]}
        result[start + at][key] = entry


def _stacked(parts: Sequence[_Part], field: str, block: slice) -> Floats:
    """Return a field of all parts, [parts, rows]."""
    return np.stack([getattr(part, field)[block] for part in parts])


def stratified_mean(strata: Sequence[Matrix]) -> Difference | None:
    """Return the mean over datasets of a run's mean scores, with its interval; None without any score.

    strata: the scores [1, samples] of each dataset. They count alike however many samples they have. Empty ones do not
        count.
    """
    columns = []
    for at, scores in enumerate(strata):
        known = scores.among(0)
        above_zero = Matrix(known.ids, np.concatenate([known.scores, np.zeros_like(known.scores)]), known.clusters)
        columns.append(ColumnScores(f"stratum {at}", [0, 1], above_zero))
    average = {"average": [[column.name for column in columns]]}
    return differences(columns, average, rows=2, baseline=1)[0].get("average")


def _rounded(value: float) -> float:
    """Return a number without its last digits, which depend on how a machine sums in parallel."""
    return round(float(value), 10) + 0.0


def paired_difference(run: RunNumbers, baseline: RunNumbers, metric: str) -> Difference | None:
    """Return the mean of (run - baseline) over common samples, with its interval; None without common samples."""
    name = run.manifest["label"]["benchmark"]
    column = ColumnScores(name, [0, 1], matrix([run, baseline], metric), 1.0)
    return differences([column], {}, rows=2, baseline=1)[0].get(name)

"""Differences to the full cache: paired by sample, with a 95% interval by Student's t.

The interval of an average over datasets takes its spread from the samples within each dataset (a stratified mean) and
its degrees of freedom from Satterthwaite (Biometrics Bulletin 2, 1946). Where the spread is unknown there is no
interval: resampling a dataset of one sample would make it look certain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from kvbench.report.runs import Run, answered

ONE_SAMPLE, NO_SPREAD = "1 sample", "no spread"  # why there is no interval
_SIGNS = 6  # differences of one sign; that many happen by chance in less than 5% of cases
# 97.5% quantiles of Student's t by degrees of freedom; between them, interpolation in 1 / degrees of freedom
_QUANTILES = {
    1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 6: 2.4469, 7: 2.3646, 8: 2.3060, 10: 2.2281, 12: 2.1788,
    15: 2.1314, 20: 2.0860, 30: 2.0423, 60: 2.0003, 120: 1.9799, np.inf: 1.9600,
}  # fmt: skip


class Difference(TypedDict):
    """A mean difference with its interval.

    Attributes:
        mean: of the differences; of an average over datasets, the mean of their means.
        low, high: 95% interval; None where it is unknown.
        reason: why it is unknown, one of `ONE_SAMPLE` and `NO_SPREAD`.
        n: samples.
        significant: the interval excludes 0; without spread, at least six differences have one sign and none the other.
    """

    mean: float
    low: float | None
    high: float | None
    reason: str | None
    n: int
    significant: bool


def deltas(run: Run, baseline: Run, metric: str) -> NDArray[np.float64]:
    """Return run - baseline for each sample that both answered, by sample id."""
    ours, theirs = (
        {sample["id"]: sample["scores"][metric] for sample in answered(side) if metric in sample["scores"]}
        for side in (run, baseline)
    )
    return np.array([ours[name] - theirs[name] for name in sorted(ours.keys() & theirs.keys())], dtype=np.float64)


def paired_difference(run: Run, baseline: Run, metric: str) -> Difference | None:
    """Return the mean of (run - baseline) over common samples, with its interval; None without common samples."""
    return stratified_difference([deltas(run, baseline, metric)])


def stratified_difference(strata: Sequence[NDArray[np.float64]]) -> Difference | None:
    """Return the mean over strata of their mean difference, with its interval; strata are the datasets of a suite.

    Strata count alike however many samples they have. Empty ones do not count; None without any sample.
    """
    strata = [stratum for stratum in strata if len(stratum)]
    if not strata:
        return None
    result: Difference = {
        "mean": float(np.mean([stratum.mean() for stratum in strata])),
        "low": None,
        "high": None,
        "reason": None,
        "n": sum(map(len, strata)),
        "significant": False,
    }
    if any(len(stratum) == 1 for stratum in strata):
        return result | {"reason": ONE_SAMPLE}
    squares = np.array([stratum.var(ddof=1) / len(stratum) for stratum in strata])  # squared standard errors
    if squares.sum() <= 1e-24:  # the differences within a dataset are equal, but for rounding
        return result | {"reason": NO_SPREAD, "significant": _all_of_one_sign(np.concatenate(strata))}
    freedom = squares.sum() ** 2 / sum(squares**2 / np.array([len(stratum) - 1 for stratum in strata]))
    half = _quantile(freedom) * float(np.sqrt(squares.sum())) / len(strata)
    low, high = result["mean"] - half, result["mean"] + half
    return result | {"low": low, "high": high, "significant": not low <= 0 <= high}


def _all_of_one_sign(differences: NDArray[np.float64]) -> bool:
    up, down = int((differences > 0).sum()), int((differences < 0).sum())
    return max(up, down) >= _SIGNS and not min(up, down)


def _quantile(freedom: float) -> float:
    inverse = [1 / known for known in _QUANTILES]
    return float(np.interp(1 / freedom, inverse[::-1], list(_QUANTILES.values())[::-1]))

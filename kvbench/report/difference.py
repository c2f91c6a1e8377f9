"""Differences to the full cache: paired by sample, with a 95% interval from the bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvbench.report.runs import Run, answered

_RESAMPLES = 10_000


def deltas(run: Run, baseline: Run, metric: str) -> NDArray[np.float64]:
    """run - baseline for each sample that both answered, by sample id."""
    ours, theirs = (
        {sample["id"]: sample["scores"][metric] for sample in answered(one) if metric in sample["scores"]}
        for one in (run, baseline)
    )
    return np.array([ours[name] - theirs[name] for name in sorted(ours.keys() & theirs.keys())], dtype=np.float64)


def paired_difference(run: Run, baseline: Run, metric: str, seed: int = 0) -> dict[str, Any] | None:
    """Mean of (run - baseline) over common samples, with a 95% percentile bootstrap interval.

    `significant` says that the interval excludes 0. One common sample gives no interval; none gives None.
    """
    return stratified_difference([deltas(run, baseline, metric)], seed)


def stratified_difference(strata: Sequence[NDArray[np.float64]], seed: int = 0) -> dict[str, Any] | None:
    """Mean over strata of their mean difference, with a 95% interval; strata are the datasets of a suite.

    Samples are drawn anew within each stratum, and strata count alike however many samples they have. Empty ones do
    not count. Returns as `paired_difference`; `n` counts samples.
    """
    strata = [stratum for stratum in strata if len(stratum)]
    if not strata:
        return None
    n = sum(map(len, strata))
    result: dict[str, Any] = {
        "mean": float(np.mean([stratum.mean() for stratum in strata])),
        "low": None,
        "high": None,
        "n": n,
        "significant": False,
    }
    if n > len(strata):
        rng = np.random.default_rng(seed)
        draws = np.mean([_resampled_means(stratum, rng) for stratum in strata], axis=0)
        low, high = (float(value) for value in np.percentile(draws, [2.5, 97.5]))
        result |= {"low": low, "high": high, "significant": not low <= 0 <= high}
    return result


def _resampled_means(values: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Means of as many draws with replacement as there are values, `_RESAMPLES` times."""
    # in pieces, so that thousands of samples do not make a matrix of gigabytes
    sizes = [(_RESAMPLES // 10, len(values))] * 10
    return np.concatenate([values[rng.integers(len(values), size=size)].mean(axis=1) for size in sizes])

"""Scores and measurements of runs, averaged over the samples with an answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kvbench.report.runs import headline_first
from kvbench.store import RunNumbers
from kvbench.store.environment import hardware_of, hardware_words

_STATES = {"ok": 0, "oom": 1, "failed": 2}  # as in `kvbench.store.columns.STATES`
_MIB = 2**20


def count(runs: Sequence[RunNumbers], state: str) -> int:
    """Return how many samples of the runs are "ok", "oom" or "failed"."""
    return sum(int((run.columns.state == _STATES[state]).sum()) for run in runs)


def mean_score(run: RunNumbers, metric: str) -> float | None:
    """Return the mean of a score over the samples that have it; None without any."""
    scores = run.columns.scores.get(metric)
    return None if scores is None else _mean(scores)


def mean_of(runs: Sequence[RunNumbers], name: str) -> float | None:
    """Return the mean over all answered samples of something measured, see `kvbench.store.columns.MEASURED`."""
    return _mean(np.concatenate([run.columns.measured[name] for run in runs]))


def time_of(runs: Sequence[RunNumbers], name: str) -> float | None:
    """Return the mean of a time, as `mean_of`; None also where samples are of different hardware."""
    return None if len(hardware_of(run.manifest for run in runs)) > 1 else mean_of(runs, name)


def hardware(runs: Sequence[RunNumbers]) -> str | None:
    """Return the name of the hardware that computed the runs, or several; None where none is recorded."""
    return hardware_words(run.manifest for run in runs)


def mean_share(runs: Sequence[RunNumbers], part: str, whole: str) -> float | None:
    """Return the mean over all answered samples of one measured number as a share of another."""
    return _mean(np.concatenate([run.columns.measured[part] / run.columns.measured[whole] for run in runs]))


def mebibytes(runs: Sequence[RunNumbers]) -> float | None:
    """Return the mean of what the cache holds in MiB: keys and values, and what must be known of each token."""
    held = mean_of(runs, "held_bytes")
    return None if held is None else held / _MIB


def _mean(values: NDArray[np.float64]) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def four_digits(value: float | None) -> float | None:
    """Return a number rounded to four significant digits, which are enough to look at."""
    return None if value is None else float(f"{value:.4g}")


def score_names(runs: Sequence[RunNumbers]) -> list[str]:
    """Return the names of the stored scores, the headline first."""
    return headline_first(runs, (name for run in runs for name in run.columns.scores))

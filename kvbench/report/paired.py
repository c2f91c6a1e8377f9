"""Scores of runs side by side: the same samples in the same order, and which of them share a context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvbench.report.bootstrap import Floats
from kvbench.store import RunNumbers


@dataclass(frozen=True)
class Matrix:
    """Scores of several runs on one benchmark.

    Attributes:
        ids: sample ids, sorted.
        scores: [runs, samples]; NaN where a run has no answer or no such score.
        clusters: [samples] numbers 0, 1, ... of contexts; questions on one context have the same number. Where contexts
            are not stored, every sample counts as a context of its own.
    """

    ids: tuple[str, ...]
    scores: Floats
    clusters: NDArray[np.int64]

    def among(self, row: int) -> Matrix:
        """Return the samples that a run has answered."""
        kept = ~np.isnan(self.scores[row])
        if kept.all():
            return self
        ids = tuple(name for name, at in zip(self.ids, kept, strict=True) if at)
        return Matrix(ids, self.scores[:, kept], _codes(self.clusters[kept].tolist()))

    def strata(self, above: int, below: Sequence[int]) -> tuple[Floats, Floats]:
        """Return [pairs, clusters] sums and numbers of the differences `scores[above] - scores[below]`."""
        return by_cluster(self.scores[above] - self.scores[list(below)], self.clusters)


def matrix(runs: Sequence[RunNumbers], metric: str) -> Matrix:
    """Return the scores of runs on one benchmark; samples that only some of them have are NaN in the others."""
    first = runs[0].columns
    if all(run.columns.ids is first.ids or run.columns.ids == first.ids for run in runs):
        ids = first.ids
        rows = [_scores(run, metric) for run in runs]
    else:
        ids = tuple(sorted({name for run in runs for name in run.columns.ids}))
        place = {name: at for at, name in enumerate(ids)}
        rows = []
        for run in runs:
            row = np.full(len(ids), np.nan)
            row[[place[name] for name in run.columns.ids]] = _scores(run, metric)
            rows.append(row)
    scores = np.stack(rows) if ids else np.empty((len(runs), 0))
    return Matrix(ids, scores, _codes(_contexts(runs, ids)))


def _scores(run: RunNumbers, metric: str) -> Floats:
    scores = run.columns.scores.get(metric)
    return np.full(len(run.columns.ids), np.nan) if scores is None else scores


def _contexts(runs: Sequence[RunNumbers], ids: tuple[str, ...]) -> list[object]:
    """Return the context of each sample; its position where no run knows it."""
    known: dict[str, str] = {}
    done: set[int] = set()
    for run in runs:
        if id(run.columns.context) not in done:
            done.add(id(run.columns.context))
            pairs = zip(run.columns.ids, run.columns.context, strict=True)
            known |= {name: context for name, context in pairs if context and name not in known}
    return [known.get(name, at) for at, name in enumerate(ids)]


def _codes(values: Sequence[object]) -> NDArray[np.int64]:
    """Return 0, 1, ... in the order in which the values first occur."""
    codes: dict[object, int] = {}
    return np.array([codes.setdefault(value, len(codes)) for value in values], dtype=np.int64)


def by_cluster(differences: Floats, clusters: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Return [rows, clusters] sums and numbers of [rows, samples] differences; NaN does not count."""
    known = ~np.isnan(differences)
    values = np.where(known, differences, 0.0)
    number = int(clusters.max()) + 1 if len(clusters) else 0
    if number == len(clusters):
        return values, known.astype(np.float64)
    order = np.argsort(clusters, kind="stable")
    starts = np.searchsorted(clusters[order], np.arange(number))
    sums = np.add.reduceat(values[:, order], starts, axis=-1)
    return sums, np.add.reduceat(known[:, order].astype(np.float64), starts, axis=-1)

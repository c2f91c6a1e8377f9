"""The scores of a needle run by context length and depth, with the interval of each cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from kvbench.report.runs import title
from kvbench.store import Record, StoredRun
from kvbench.store.schema import HUGE

_LONGEST = 2000  # rows or columns of a grid that is drawn
_NORMAL = 1.96  # the 97.5% quantile of the normal distribution


@dataclass(frozen=True)
class Grid:
    """The cells of a run, by (length, depth).

    Attributes:
        score: mean score.
        interval: 95% interval of the mean, where there is more than one sample; see `wilson`.
        oom: cells with a sample that has no answer (out of memory, failed).
    """

    lengths: Sequence[int]
    depths: Sequence[int]
    score: Mapping[tuple[int, int], float]
    interval: Mapping[tuple[int, int], tuple[float, float]]
    oom: frozenset[tuple[int, int]]


def has_grid(run: StoredRun) -> bool:
    """Return True if all samples carry a length and a depth."""
    return bool(run.samples) and all(
        isinstance(value, int) and 0 <= value <= HUGE
        for sample in run.samples
        for value in (sample["meta"].get("length"), sample["meta"].get("depth"))
    )


def grid(run: StoredRun, metric: str) -> Grid:
    """Return the scores of a run by cell. The axes are the protocol's, so that cells not run yet show as missing.

    Raises ValueError for a run without a grid.
    """
    if not has_grid(run):
        raise ValueError(f"{title(run)}: its samples carry no length and depth, so there is no heatmap to draw")
    values: dict[tuple[int, int], list[float]] = {}
    for sample in run.answered:
        if metric in sample["scores"]:
            values.setdefault(_cell(sample), []).append(sample["scores"][metric])
    oom = frozenset(_cell(sample) for sample in run.samples if sample["status"] != "ok")
    cells = values.keys() | oom
    score = {cell: sum(scores) / len(scores) for cell, scores in values.items()}
    return Grid(
        lengths=sorted({*_axis(run, "lengths"), *(length for length, _ in cells)}),
        depths=sorted({*_axis(run, "depths"), *(depth for _, depth in cells)}),
        score=score,
        interval={
            cell: wilson(score[cell], len(scores))
            for cell, scores in values.items()
            if len(scores) > 1 and all(0 <= value <= 1 for value in scores)
        },
        oom=oom,
    )


def wilson(mean: float, count: int) -> tuple[float, float]:
    """Return Wilson's 95% interval of a mean of `count` scores from 0 to 1.

    It is exact enough for few scores of 0 and 1, and wider than needed for scores in between, which vary less.
    Source: Wilson, Journal of the American Statistical Association 22, 1927.
    """
    square = _NORMAL**2
    middle = (mean + square / (2 * count)) / (1 + square / count)
    half = _NORMAL * sqrt(mean * (1 - mean) / count + square / (4 * count**2)) / (1 + square / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def _axis(run: StoredRun, key: str) -> list[int]:
    """Return the values of an axis in the protocol, if it has any that can be drawn."""
    values = run.manifest["identity"]["protocol"].get(key)
    if not isinstance(values, list) or len(values) > _LONGEST:
        return []
    return [value for value in values if isinstance(value, int) and 0 <= value <= HUGE]


def _cell(sample: Record) -> tuple[int, int]:
    length, depth = sample["meta"]["length"], sample["meta"]["depth"]
    assert isinstance(length, int) and isinstance(depth, int), "checked by has_grid"
    return length, depth

"""The points of curves, trade-offs and bars: a row of a table with its score, its interval and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvbench.common.text import one_line
from kvbench.report.difference import stratified_mean
from kvbench.report.measured import count, mean_share, mebibytes, score_names, time_of
from kvbench.report.paired import Matrix, matrix
from kvbench.report.runs import MARK, budget_order, check_metric, is_full_cache, names, order
from kvbench.report.suite import SuiteTable
from kvbench.report.suite_groups import place_of, row_key
from kvbench.store import RunNumbers, numbers_of
from kvbench.store.columns import TIMINGS
from kvbench.store.environment import is_mixed
from kvbench.store.numbers import ReadRun

_NAMED = 3  # rows that a note names


@dataclass(frozen=True)
class Point:
    """A method under a budget.

    Attributes:
        score: mean score; of a suite, the average of its datasets, in points.
        low, high: 95% interval of the score over samples; equal to the score where it is unknown.
        kept_share: kept tokens as a share of those compressed.
        held_share: bytes that the cache holds, as a share of the full cache's keys and values.
        held_mib: the same bytes in MiB: keys and values, and what a store or a decode policy must know of each token.
        seconds: mean times by name, see `TIMINGS`; those that were measured.
        mixed: computed with different versions or on different hardware.
    """

    method: str
    budget: str
    is_full_cache: bool
    score: float
    low: float
    high: float
    samples: int
    kept_share: float
    held_share: float
    held_mib: float
    seconds: Mapping[str, float]
    mixed: bool = False

    def as_json(self) -> list[object]:
        """Return all fields, for the stamp of a figure."""
        fields = {**vars(self), "seconds": dict(self.seconds)}
        mixed = fields.pop("mixed")
        return [*fields.values(), *(["mixed"] if mixed else [])]


@dataclass(frozen=True)
class Points:
    """The points of a table, in its order, and what their score is.

    Attributes:
        score: the name of the score.
        top: the largest score that there can be; None where that is unknown.
        left_out: how many rows lack datasets that others have; they are not among the points.
    """

    points: Sequence[Point]
    score: str
    top: float | None
    left_out: int = 0

    @property
    def methods(self) -> list[str]:
        """The methods other than the full cache, those with a budget first: the order of colours in all figures."""
        others = [point for point in self.points if not point.is_full_cache]
        return list(dict.fromkeys(point.method for point in sorted(others, key=lambda point: point.budget == "full")))

    @property
    def notes(self) -> str:
        """Notes on the rows that are left out, and on those that tables mark; empty if there are none."""
        rows = "row is" if self.left_out == 1 else "rows are"
        missing = f"{self.left_out} {rows} not shown, as datasets are missing there" if self.left_out else ""
        mixed = [f"{point.method} {point.budget}" for point in self.points if point.mixed]
        shown = ", ".join(mixed[:_NAMED]) + (f" and {len(mixed) - _NAMED} more" if len(mixed) > _NAMED else "")
        return "; ".join(filter(None, [missing, f"{MARK} different versions or hardware: {shown}" if mixed else ""]))

    @property
    def limits(self) -> tuple[float, float] | None:
        """The ends of an axis of scores, from 0 to their largest value or the highest interval; None below 0."""
        if min((point.low for point in self.points), default=0.0) < 0:
            return None
        high = max((point.high for point in self.points), default=0.0)
        if self.top is not None and (high > 0.5 * self.top or high <= 0):
            high = self.top
        return (-0.03 * high, 1.05 * high) if high > 0 else None


def points_of(
    runs: Sequence[ReadRun | RunNumbers], suite: SuiteTable | None = None, metric: str | None = None
) -> Points:
    """Return the points of comparable runs, the full cache first; those of a suite by its leading average.

    Runs without any answer have no point. Raises ValueError for a metric that the runs do not hold.
    """
    if suite is not None:
        return _of_suite(list(map(numbers_of, runs)), suite)
    numbers = sorted(map(numbers_of, runs), key=order)
    metric = check_metric(numbers, score_names(numbers), metric)
    points, highest = [], 0.0
    for run, name in zip(numbers, names(numbers), strict=True):
        scores = _scores(run, metric)
        if scores.ids:
            points.append(_point([run], [scores], name))
            highest = max(highest, float(scores.scores.max()))
    top = 1.0 if highest <= 1 else None
    return Points([_clipped(point, top) for point in points], one_line(metric), top)


def _of_suite(runs: Sequence[RunNumbers], suite: SuiteTable) -> Points:
    lead = suite["lead"]
    counts = [row["means"][lead]["n"] for row in suite["rows"]]
    whole = max(counts, default=0)
    metrics = {column["name"]: column["metric"] for column in suite["columns"] if lead in column["means"]}
    metrics = metrics or {column["name"]: column["metric"] for column in suite["columns"]}
    members: dict[str, list[RunNumbers]] = {}
    for run in runs:
        if place_of(run.manifest)["name"] in metrics:
            members.setdefault(row_key(run), []).append(run)
    result, highest = [], 0.0
    for row, known in zip(suite["rows"], counts, strict=True):
        if not known or known < whole:
            continue
        scores = []
        for run in members[row["key"]]:
            scores.append(_scores(run, metrics[place_of(run.manifest)["name"]], 100))
            highest = max(highest, float(scores[-1].scores.max(initial=0)))
        point = _point(members[row["key"]], scores, row["method"])
        exact = row["means"][lead]["score"]  # of rounded scores, as in the table
        result.append(point if exact is None else _moved(point, exact))
    mean = suite["rows"][0]["means"][lead] if suite["rows"] else None
    partly = "" if mean is None or whole == mean["of"] else f" ({whole} of {mean['of']} datasets)"
    top = 100.0 if highest <= 100 else None
    left_out = sum(0 < known < whole for known in counts)
    return Points([_clipped(point, top) for point in result], f"{one_line(lead)}{partly}", top, left_out)


def _scores(run: RunNumbers, metric: str, factor: float = 1) -> Matrix:
    """Return the scores [1, samples] of the samples that have one, and which of them share a context."""
    scores = matrix([run], metric).among(0)
    return Matrix(scores.ids, factor * scores.scores, scores.clusters)


def _point(runs: Sequence[RunNumbers], scores: Sequence[Matrix], method: str) -> Point:
    spread = stratified_mean(scores)
    assert spread is not None, "there is a score"
    return Point(
        method=method,
        budget=runs[0].manifest["label"]["budget"],
        is_full_cache=is_full_cache(runs[0].manifest),
        score=spread["mean"],
        low=spread["mean"] if spread["low"] is None else spread["low"],
        high=spread["mean"] if spread["high"] is None else spread["high"],
        samples=count(runs, "ok"),
        kept_share=mean_share(runs, "kept_mean", "span") or 0.0,
        held_share=mean_share(runs, "held_bytes", "kv_bytes_full") or 0.0,
        held_mib=mebibytes(runs) or 0.0,
        seconds={key: value for key in TIMINGS if (value := time_of(runs, key)) is not None},
        mixed=is_mixed(run.manifest for run in runs),
    )


def _moved(point: Point, score: float) -> Point:
    move = score - point.score
    return Point(**{**vars(point), "score": score, "low": point.low + move, "high": point.high + move})


def _clipped(point: Point, top: float | None) -> Point:
    """Return the point with its interval inside the range of the score."""
    high = point.high if top is None else min(point.high, top)
    return Point(**{**vars(point), "low": max(point.low, 0.0) if point.score >= 0 else point.low, "high": high})


def by_method(points: Sequence[Point]) -> dict[str, list[Point]]:
    """Return the points with a budget by method, each method's by budget."""
    methods: dict[str, list[Point]] = {}
    for point in points:
        if point.budget != "full":
            methods.setdefault(point.method, []).append(point)
    return {key: sorted(methods[key], key=lambda point: budget_order(point.budget)) for key in methods}


def apart(number: int) -> list[float]:
    """Return factors that move the points of `number` methods apart on a logarithmic axis, by up to 8% of an octave."""
    if number == 1:
        return [1.0]
    width = min(0.08, 0.012 * number)
    return [2.0 ** (width * (2 * place / (number - 1) - 1)) for place in range(number)]

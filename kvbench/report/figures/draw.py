"""All figures of a table: what is drawn for which runs, and under which names.

A figure is a function of a `Shown`. It writes files to the table's folder and returns the paths of the PNGs, or none
where there is nothing to show. To add one, list it in `FIGURES`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from kvbench.common.text import one_line
from kvbench.report.figures.bars import bars
from kvbench.report.figures.curve import curve
from kvbench.report.figures.kept_heads import head_shares, kept_heads
from kvbench.report.figures.kept_text import kept_text
from kvbench.report.figures.needle import heatmap, heatmaps
from kvbench.report.figures.needle_grid import has_grid
from kvbench.report.figures.palette import check_palette
from kvbench.report.figures.points import Points
from kvbench.report.figures.shown import Shown
from kvbench.report.figures.tradeoff import tradeoff
from kvbench.report.measured import hardware, mean_score
from kvbench.report.runs import budget_order, budget_words, is_full_cache
from kvbench.store import RunNumbers, load_run, read_kept

log = logging.getLogger(__name__)

_SINGLES, _PANELS, _ROWS = 60, 60, 120  # most rows with a heatmap each, a panel each, a bar or a line each
_TEXTS = 24  # most runs whose kept tokens are shown over the text


def draw(shown: Shown) -> list[Path]:
    """Write all figures of a table, and return the paths of the PNGs.

    Raises ValueError for an unknown palette or metric.
    """
    check_palette(shown.palette)
    return [path for figure in FIGURES.values() for path in figure(shown)]


def _heatmaps(shown: Shown) -> list[Path]:
    """Write a needle heatmap for each run with a grid, and small multiples of all."""
    places = [] if shown.suite is not None else [at for at, run in enumerate(shown.numbers) if _may_have_grid(run)]
    kept = _best_runs(shown, places, _PANELS, "the overview of heatmaps")
    loaded = [(load_run(shown.runs[at].path, bulky=False), shown.names[at]) for at in kept]
    drawable = [(run, name) for run, name in loaded if has_grid(run)]
    written = []
    if not shown.limited or len(places) <= _SINGLES:
        for run, name in drawable:
            written.append(heatmap(run, shown.folder / f"{run.path.name}.png", shown.metric, shown.palette, name))
    elif drawable:
        _say(shown, len(places), "have no heatmaps of their own, only panels of the overview")
    if drawable:
        runs, called = [run for run, _ in drawable], [name for _, name in drawable]
        written += heatmaps(runs, shown.folder / "overview.png", shown.metric, shown.palette, called)
    return written


def _may_have_grid(run: RunNumbers) -> bool:
    """Return True if all samples carry a length and a depth."""
    length, depth = run.columns.length, run.columns.depth
    return bool(len(length)) and bool(np.isfinite(length).all() and np.isfinite(depth).all())


def _curve(shown: Shown) -> list[Path]:
    points, details = _best_points(shown, "budget curves")
    return curve(points, shown.heading, details, shown.folder / "budgets.png")


def _tradeoff(shown: Shown) -> list[Path]:
    return tradeoff(shown.points, shown.heading, shown.details, shown.folder / "bytes.png")


def _bars(shown: Shown) -> list[Path]:
    points, details = _best_points(shown, "bars of time and memory")
    if len({hardware([run]) for run in shown.numbers}) > 1:
        details = f"{details}; times of different hardware do not compare"
    return bars(points, shown.heading, details, shown.folder / "costs.png")


def _kept_heads(shown: Shown) -> list[Path]:
    """Write the kept tokens of layers and heads, a figure for each budget. The counts are read one run at a time."""
    places = [at for at, run in enumerate(shown.runs) if run.manifest["label"]["budget"] != "full"]
    budgets: dict[str, dict[str, list[Path]]] = {}
    for at in _best_runs(shown, places, _PANELS, "kept tokens of heads"):
        of_budget = budgets.setdefault(shown.runs[at].manifest["label"]["budget"], {})
        of_budget.setdefault(shown.names[at], []).append(shown.runs[at].path)
    written = []
    for budget in sorted(budgets, key=budget_order):
        shares = {
            key: head_shares([record for path in paths for record in load_run(path).samples])
            for key, paths in budgets[budget].items()
        }
        known = {key: table for key, table in shares.items() if table is not None}
        file = shown.folder / f"kept_heads-b{budget}.png"
        written += kept_heads(known, shown.heading, f"{shown.details}, {budget_words(budget)}", file)
    return written


def _kept_text(shown: Shown) -> list[Path]:
    """Write the kept tokens over the text of the first saved sample of each run that has them (`save.kept=true`)."""
    saved = [at for at, run in enumerate(shown.runs) if any(run.path.glob("kept*.jsonl"))]
    written = []
    for at in _best_runs(shown, saved, _TEXTS, "kept tokens over the text"):
        run = shown.runs[at]
        words = ", ".join(filter(None, [shown.names[at], budget_words(run.manifest["label"]["budget"])]))
        for kept in list(read_kept(run.path).values())[:1]:
            answers = next(
                (record.get("answers") for record in load_run(run.path).samples if record["id"] == kept.id), []
            )
            texts = [answer for answer in answers if isinstance(answer, str)] if isinstance(answers, list) else []
            file = shown.folder / f"kept_text-{run.path.name}.png"
            written.append(kept_text(kept, f"{shown.heading}: {words}", one_line(kept.id), file, texts))
    return written


def _best_points(shown: Shown, what: str) -> tuple[Points, str]:
    """Return the points of as many methods as a figure has room for, and the details that say which ones.

    They are the methods with the highest mean scores.
    """
    points = shown.points
    if not shown.limited or len(points.points) <= _ROWS:
        return points, shown.details
    others = [point for point in points.points if not point.is_full_cache]
    best = best_methods([point.method for point in others], [point.score for point in others], _ROWS)
    kept = [point for point in points.points if point.is_full_cache or point.method in best]
    _say(shown, len(points.points), _fewer(what, len(best), len(kept)))
    note = f"only the {len(best)} of {len({point.method for point in others})} methods that score highest"
    return replace(points, points=kept), "; ".join(filter(None, [shown.details, note]))


def _best_runs(shown: Shown, places: Sequence[int], most: int, what: str) -> Sequence[int]:
    """Return the places of the runs of as many methods as a figure has room for, in their order."""
    if not shown.limited or len(places) <= most:
        return places
    full = {at for at in places if is_full_cache(shown.runs[at].manifest)}
    others = [at for at in places if at not in full]
    scores = [_score(shown.numbers[at], shown) for at in others]
    best = best_methods([shown.names[at] for at in others], scores, most - len(full))
    kept = [at for at in places if at in full or shown.names[at] in best]
    _say(shown, len(places), _fewer(what, len(best), len(kept)))
    return kept


def _score(run: RunNumbers, shown: Shown) -> float:
    metric = shown.metric if shown.suite is None else None
    return mean_score(run, metric or run.manifest["headline"]) or 0.0


def best_methods(methods: Sequence[str], scores: Sequence[float], most: int) -> set[str]:
    """Return the methods with the highest mean scores, as many as have at most `most` rows together, and at least one.

    `methods` and `scores` are those of the rows.
    """
    rows: dict[str, list[float]] = {}
    for method, score in zip(methods, scores, strict=True):
        rows.setdefault(method, []).append(score)
    best: set[str] = set()
    for method in sorted(rows, key=lambda method: (-sum(rows[method]) / len(rows[method]), method)):
        most -= len(rows[method])
        if best and most < 0:
            break
        best.add(method)
    return best


def _fewer(what: str, methods: int, rows: int) -> str:
    are = "are those of the method that scores" if methods == 1 else f"are those of the {methods} methods that score"
    return f"are too many for {what}, which {are} highest ({rows} rows)"


def _say(shown: Shown, rows: int, what: str) -> None:
    log.warning("%s: %d rows %s; --figures all draws all of them", shown.folder.name, rows, what)


FIGURES: dict[str, Callable[[Shown], list[Path]]] = {
    "heatmaps": _heatmaps,
    "budgets": _curve,
    "bytes": _tradeoff,
    "costs": _bars,
    "kept_heads": _kept_heads,
    "kept_text": _kept_text,
}

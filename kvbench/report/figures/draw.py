"""All figures of a table: what is drawn for which runs, and under which names.

A figure is a function of a `Shown`. It writes files to the table's folder and returns the paths of the PNGs, or none
where there is nothing to show. To add one, list it in `FIGURES`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from kvbench.common.text import one_line
from kvbench.report.figures.bars import bars
from kvbench.report.figures.curve import curve
from kvbench.report.figures.kept_heads import head_shares, kept_heads
from kvbench.report.figures.kept_text import kept_text
from kvbench.report.figures.needle import heatmap, heatmaps
from kvbench.report.figures.needle_grid import has_grid
from kvbench.report.figures.palette import check_palette
from kvbench.report.figures.shown import Shown
from kvbench.report.figures.tradeoff import tradeoff
from kvbench.report.runs import budget_order, budget_words, name, title
from kvbench.store import StoredRun, load_run, read_kept

log = logging.getLogger(__name__)

_SINGLES, _PANELS, _ROWS = 60, 240, 480  # most runs that get a heatmap each, a panel each, a bar or a line each
_TEXTS = 24  # most runs whose kept tokens are shown over the text


def draw(shown: Shown) -> list[Path]:
    """Write all figures of a table, and return the paths of the PNGs.

    Raises ValueError for an unknown palette or metric.
    """
    check_palette(shown.palette)
    return [path for figure in FIGURES.values() for path in figure(shown)]


def _heatmaps(shown: Shown) -> list[Path]:
    """Write a needle heatmap for each run with a grid, and small multiples of all."""
    drawable = [run for run in shown.runs if shown.suite is None and has_grid(run)]
    written = []
    if _fits(shown, drawable, _SINGLES, "heatmaps of single runs"):
        for run in drawable:
            written.append(heatmap(run, shown.folder / f"{run.path.name}.png", shown.metric, shown.palette))
    if drawable and _fits(shown, drawable, _PANELS, "the overview of heatmaps"):
        written += heatmaps(drawable, shown.folder / "overview.png", shown.metric, shown.palette)
    return written


def _curve(shown: Shown) -> list[Path]:
    if not _fits(shown, shown.points.points, _ROWS, "budget curves"):
        return []
    return curve(shown.points, shown.heading, shown.details, shown.folder / "budgets.png")


def _tradeoff(shown: Shown) -> list[Path]:
    return tradeoff(shown.points, shown.heading, shown.details, shown.folder / "bytes.png")


def _bars(shown: Shown) -> list[Path]:
    if not _fits(shown, shown.points.points, _ROWS, "bars of time and memory"):
        return []
    return bars(shown.points, shown.heading, shown.details, shown.folder / "costs.png")


def _kept_heads(shown: Shown) -> list[Path]:
    """Write the kept tokens of layers and heads, a figure for each budget. The counts are read one run at a time."""
    if not _fits(shown, shown.runs, _PANELS, "kept tokens of heads"):
        return []
    budgets: dict[str, list[StoredRun]] = {}
    for run in shown.runs:
        if run.manifest["label"]["budget"] != "full":
            budgets.setdefault(run.manifest["label"]["budget"], []).append(run)
    written = []
    for budget in sorted(budgets, key=budget_order):
        named: dict[str, list[StoredRun]] = {}
        for run in budgets[budget]:
            named.setdefault(name(run, shown.runs), []).append(run)
        shares = {
            key: head_shares([r for run in runs for r in load_run(run.path).samples]) for key, runs in named.items()
        }
        known = {key: table for key, table in shares.items() if table is not None}
        file = shown.folder / f"kept_heads-b{budget}.png"
        written += kept_heads(known, shown.heading, f"{shown.details}, {budget_words(budget)}", file)
    return written


def _kept_text(shown: Shown) -> list[Path]:
    """Write the kept tokens over the text of the first saved sample of each run that has them (`save.kept=true`)."""
    saved = [run for run in shown.runs if any(run.path.glob("kept*.jsonl"))]
    if not _fits(shown, saved, _TEXTS, "kept tokens over the text"):
        return []
    written = []
    for run in saved:
        for kept in list(read_kept(run.path).values())[:1]:
            answers = next(
                (record.get("answers") for record in load_run(run.path).samples if record["id"] == kept.id), []
            )
            texts = [answer for answer in answers if isinstance(answer, str)] if isinstance(answers, list) else []
            file = shown.folder / f"kept_text-{run.path.name}.png"
            written.append(
                kept_text(kept, f"{shown.heading}: {title(run, shown.runs)}", one_line(kept.id), file, texts)
            )
    return written


def _fits(shown: Shown, items: Sequence[object], most: int, what: str) -> bool:
    """Return True if there are few enough items to draw; log what is left out otherwise."""
    if len(items) > most:
        log.warning("%s: %d rows, so %s are left out (at most %d)", shown.folder.name, len(items), what, most)
    return len(items) <= most


FIGURES: dict[str, Callable[[Shown], list[Path]]] = {
    "heatmaps": _heatmaps,
    "budgets": _curve,
    "bytes": _tradeoff,
    "costs": _bars,
    "kept_heads": _kept_heads,
    "kept_text": _kept_text,
}

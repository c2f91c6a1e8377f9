"""Needle heatmaps: depth against context length, for one run or as small multiples with a panel per run.

Depth 0 is on top and colours run from 0 to 1, as in the published needle figures. Where a cell was measured several
times, a bar at its bottom shows the 95% interval of its mean: the width of the cell is the range from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvbench.common.text import one_line
from kvbench.report.figures import figure
from kvbench.report.figures.figure import DOUBLE, FAINT, INK, LINE, SINGLE, TALL, headline, styled
from kvbench.report.figures.needle_grid import Grid, grid
from kvbench.report.figures.palette import ink_on, score_map
from kvbench.report.measured import score_names
from kvbench.report.runs import (
    budget_order,
    check_comparable,
    check_metric,
    kept_share,
    names,
    order,
    titled,
)
from kvbench.store import StoredRun, numbers_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MISSING, _OOM = "#FFFFFF", "#DADADA"
_DENSE = 20  # rows or columns from which on a grid is drawn as published: thin lines, no numbers
_TICKS = (1, 2, 5, 10, 20, 50, 100)
_NARROWEST = 0.95  # inches: a panel of the small multiples
_DEPTH, _LENGTH = "Needle depth (%)", "Context length (tokens)"


@styled
def heatmap(
    run: StoredRun, path: str | Path, metric: str | None = None, palette: str = "safe", name: str | None = None
) -> Path:
    """Write the heatmap of one run as PNG and PDF, and return the path of the PNG. `name`: default, its method."""
    metric = check_metric([run], score_names([numbers_of(run)]), metric)
    text = titled(name or run.manifest["label"]["method"], run)
    stamp = figure.stamp(["heatmap", palette, _shown([run], [text], metric)])
    if figure.is_drawn(path, stamp):
        return Path(path)
    cells = grid(run, metric)
    total_x = SINGLE if len(cells.lengths) <= 10 else DOUBLE
    left, right, bottom = 0.5, 0.62, 0.5 if _dense(cells) else 0.36
    width, height = total_x - left - right, min(max(1.3, 0.2 * len(cells.depths)), 4.0)
    label = run.manifest["label"]
    facts = [f"{label['benchmark']}, {label['model']}", *_facts(run, cells, metric)]
    top = 0.05 + _title_height(text, facts, width, figure.TITLE)
    total_y = top + height + bottom
    picture = figure.new(total_x, total_y, layout=None)
    axes = picture.add_axes((left / total_x, bottom / total_y, width / total_x, height / total_y))
    _panel(axes, cells, width, height, palette)
    headline(axes, text, " · ".join(facts), width)
    picture.text((left + width / 2) / total_x, 0.05 / total_y, _LENGTH, ha="center")
    axes.set_ylabel(_DEPTH)
    bar = picture.add_axes(((total_x - right + 0.1) / total_x, bottom / total_y, 0.1 / total_x, height / total_y))
    _colour_bar(picture, metric, palette, bar)
    return figure.save(picture, path, stamp)


@styled
def heatmaps(
    runs: Sequence[StoredRun],
    path: Path,
    metric: str | None = None,
    palette: str = "safe",
    called: Sequence[str] | None = None,
) -> list[Path]:
    """Write small multiples, a panel per run: methods as rows, budgets as columns, those without budget on the left.

    Rows that do not fit on a printed page go to further files. `called` are the names of the runs; default: those that
    they have among each other. Return the paths of the PNGs.

    Raises ValueError for runs that cannot be compared.
    """
    check_comparable(runs)
    metric = check_metric(runs, score_names(list(map(numbers_of, runs))), metric)
    pairs = sorted(zip(runs, called or names(runs), strict=True), key=lambda pair: order(pair[0]))
    runs, called = [run for run, _ in pairs], [name for _, name in pairs]
    texts = [titled(name, run) for run, name in pairs]
    places = _places(runs, called)
    cells = [grid(run, metric) for run in runs]
    columns = 1 + max(column for _, column in places)
    left, right, gap_x = 0.55, 0.62, 0.14
    width = max(_NARROWEST, min((DOUBLE - left - right - (columns - 1) * gap_x) / columns, 2.6))
    height = min(max(0.8, 0.13 * len(cells[0].depths)), 2.6)
    above = [
        _title_height(text, _facts(run, cell, metric), width, 7.0)
        for run, text, cell in zip(runs, texts, cells, strict=True)
    ]
    gap_y, top, bottom = 0.1 + max(above), 0.34 + max(above), 0.5 if _dense(cells[0]) else 0.36
    rows = 1 + max(row for row, _ in places)
    fitting = max(1, int((TALL - top - bottom + gap_y) / (height + gap_y)))
    total_x = left + columns * (width + gap_x) - gap_x + right
    written = []
    for number, first in enumerate(range(0, rows, fitting)):
        inside = [place for place, (row, _) in enumerate(places) if first <= row < first + fitting]
        own = [runs[place] for place in inside], [texts[place] for place in inside]
        file = figure.page(path, number)
        stamp = figure.stamp(["heatmaps", palette, _shown(*own, metric), [places[place] for place in inside]])
        written.append(file)
        if figure.is_drawn(file, stamp):
            continue
        here = min(fitting, rows - first)
        total_y = top + here * (height + gap_y) - gap_y + bottom
        picture = figure.new(total_x, total_y, layout=None)
        for place in inside:
            row, column = places[place]
            x, y = left + column * (width + gap_x), total_y - top - height - (row - first) * (height + gap_y)
            axes = picture.add_axes((x / total_x, y / total_y, width / total_x, height / total_y))
            _panel(axes, cells[place], width, height, palette)
            headline(axes, texts[place], " · ".join(_facts(runs[place], cells[place], metric)), width, 7.0)
            is_lowest = row + 1 == first + fitting or (row + 1, column) not in places
            axes.tick_params(labelbottom=is_lowest, labelleft=(row, column - 1) not in places)
        label = runs[0].manifest["label"]
        title = f"{one_line(metric)} by length and depth: {label['benchmark']}, {label['model']}"
        picture.text(left / total_x, 1 - 0.06 / total_y, title[:1].upper() + title[1:], va="top", fontsize=9)
        middle = (bottom + total_y - top) / 2 / total_y
        picture.text(0.06 / total_x, middle, _DEPTH, rotation=90, va="center")
        picture.text((left + total_x - right) / 2 / total_x, 0.05 / total_y, _LENGTH, ha="center")
        tall = min(total_y - top - bottom, 2.2)
        bar = picture.add_axes(
            ((total_x - right + 0.1) / total_x, 1 - (top + tall) / total_y, 0.1 / total_x, tall / total_y)
        )
        _colour_bar(picture, metric, palette, bar)
        figure.save(picture, file, stamp)
    return written


def _places(runs: Sequence[StoredRun], called: Sequence[str]) -> list[tuple[int, int]]:
    """Return row and column of each run; runs come in order. A row holds the runs of one name."""
    budgets = {run.manifest["label"]["budget"] for run in runs}
    columns = sorted(budgets, key=budget_order)
    places: list[tuple[int, int]] = []
    first_row: dict[str, int] = {}
    for run, name in zip(runs, called, strict=True):
        budget = run.manifest["label"]["budget"]
        column = columns.index(budget)
        row = 0
        if budget != "full":
            used = [row for row, other in places if columns[other] != "full"]
            row = first_row.setdefault(name, max(used, default=-1) + 1)
        while (row, column) in places:
            row += 1
        places.append((row, column))
    return places


def _panel(axes: Axes, cells: Grid, width: float, height: float, palette: str) -> None:
    """Draw the cells of one run into axes of `width` × `height` inches."""
    import numpy as np
    from matplotlib.patches import Rectangle

    values = np.full((len(cells.depths), len(cells.lengths)), np.nan)
    for (length, depth), value in cells.score.items():
        values[cells.depths.index(depth), cells.lengths.index(length)] = value
    dense, colours = _dense(cells), score_map(palette)
    edges: dict[str, Any] = {} if dense else {"edgecolors": "white", "linewidth": 0.6}
    axes.pcolormesh(values, cmap=colours, vmin=0, vmax=1, **edges)
    axes.invert_yaxis()
    if dense:
        lines: dict[str, Any] = {"colors": FAINT, "linestyles": (0, (2, 2)), "linewidth": 0.3}
        axes.hlines(range(1, len(cells.depths)), 0, len(cells.lengths), **lines)
        axes.vlines(range(1, len(cells.lengths)), 0, len(cells.depths), **lines)
    cell_x, cell_y = width / len(cells.lengths), height / len(cells.depths)
    has_room = not dense and cell_x > 0.22 and cell_y > 0.1
    for row, depth in enumerate(cells.depths):
        for column, length in enumerate(cells.lengths):
            cell = length, depth
            score = cells.score.get(cell)
            if score is None:
                face, hatch = (_OOM, None) if cell in cells.oom else (_MISSING, "/////")
                edge = LINE if hatch else "white"
                axes.add_patch(Rectangle((column, row), 1, 1, fc=face, ec=edge, hatch=hatch, lw=0))
            text = "" if score is None or not has_room else f"{score:.2f}"
            if cell in cells.oom:
                text = f"{text}*" if score is not None else "OOM" if has_room else "×"
            ink = INK if score is None else ink_on(colours(min(max(score, 0.0), 1.0)))
            interval = cells.interval.get(cell) if not dense else None
            if interval is not None:
                low, high = interval
                axes.plot(
                    [column + 0.06 + 0.88 * low, column + 0.06 + 0.88 * high],
                    [row + 0.88] * 2,
                    color=ink,
                    lw=1.1,
                    solid_capstyle="butt",
                )
                axes.plot([column + 0.06, column + 0.94], [row + 0.88] * 2, color=ink, lw=0.3)
            if text:
                size = 6.0 if cell_x > 0.3 and cell_y > 0.125 else 5.0
                middle = row + (0.45 if interval is not None else 0.53)
                axes.text(column + 0.5, middle, text, ha="center", va="center", fontsize=size, color=ink)
    _ticks(axes, cells, width, height)


def _dense(cells: Grid) -> bool:
    return max(len(cells.lengths), len(cells.depths)) > _DENSE


def _ticks(axes: Axes, cells: Grid, width: float, height: float) -> None:
    """Label every n-th row and column, as many as fit; in a dense grid the lengths stand aslant."""
    thousands = all(length % 500 == 0 for length in cells.lengths) and max(cells.lengths) >= 10_000
    names = [f"{length / 1000:g}k" if thousands else str(length) for length in cells.lengths]
    slanted: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if _dense(cells) else {}
    room = 0.16 if slanted else 0.062 * max(map(len, names)) + 0.02
    columns = range(0, len(names), _step(len(names), width / room))
    axes.set_xticks([column + 0.5 for column in columns], [names[column] for column in columns], **slanted)
    rows = range(0, len(cells.depths), _step(len(cells.depths), height / 0.105))
    axes.set_yticks([row + 0.5 for row in rows], [str(cells.depths[row]) for row in rows])
    axes.tick_params(length=0, pad=2)
    axes.set(xlim=(0, len(cells.lengths)), ylim=(len(cells.depths), 0))
    for spine in axes.spines.values():
        spine.set_visible(False)


def _step(number: int, room: float) -> int:
    """Return the smallest round step with which the labels of `number` rows fit where there is room for `room`."""
    return next((step for step in _TICKS if number / step <= room), number)


def _facts(run: StoredRun, cells: Grid, metric: str) -> list[str]:
    """Return what was measured, in a few words each."""
    facts = [f"mean {one_line(metric)} {sum(cells.score.values()) / len(cells.score):.2f}"] if cells.score else []
    share = kept_share(run)
    if share is not None:
        facts.append(f"kept {100 * share:.0f}%")
    if cells.oom:
        facts.append(f"{len(cells.oom)} oom")
    return facts


def _title_height(name: str, facts: Sequence[str], width: float, size: float) -> float:
    """Return the inches that `headline` needs above the axes."""
    below = figure.wrapped(" · ".join(facts), width * 1.12, size - 1.5)
    above = figure.wrapped(name, width, size)
    return (5 + 1.25 * (size - 1.5) * len(below.splitlines()) + 1.25 * size * len(above.splitlines())) / 72


def _colour_bar(picture: Figure, metric: str, palette: str, place: Axes) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bar = picture.colorbar(ScalarMappable(Normalize(0, 1), score_map(palette)), cax=place)
    bar.set_label(one_line(metric))
    bar.set_ticks([0, 0.5, 1], labels=["0", "0.5", "1"])
    bar.outline.set_visible(False)


def _shown(runs: Sequence[StoredRun], texts: Sequence[str], metric: str) -> list[Any]:
    """Return all that a figure of these runs depends on."""
    return [metric] + [
        [
            text,
            run.manifest["label"],
            [run.manifest["identity"]["protocol"].get(key) for key in ("lengths", "depths")],
            kept_share(run),
            [
                [s["meta"].get("length"), s["meta"].get("depth"), s["id"], s["status"], s.get("scores")]
                for s in run.samples
            ],
        ]
        for run, text in zip(runs, texts, strict=True)
    ]

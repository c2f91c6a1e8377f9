"""Needle heatmaps: depth against context length, one panel per run.

Colours and axes follow the published needle figures: linear through three colours, 0 to 1, depth 0 on top.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvbench.common.text import one_line
from kvbench.report.figures import figure
from kvbench.report.figures.figure import FAINT, INK, LINE
from kvbench.report.runs import Run, answered, budget_order, check_comparable, check_metric, kept_share, order, title
from kvbench.store import Record
from kvbench.store.schema import HUGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#F0496E", "#EBB839", "#0CD79F")
_MISSING, _OOM = "#F2F2F2", "#D0D0D0"
_DENSE = 20  # rows or columns from which on a grid is drawn as published: thin lines, no numbers
_LONGEST = 2000  # rows or columns of a grid that is drawn
_TICKS = (1, 2, 5, 10, 20, 50, 100)


@dataclass(frozen=True)
class Grid:
    """One run: the mean score of each (length, depth), and where a sample has no answer (out of memory, failed)."""

    lengths: Sequence[int]
    depths: Sequence[int]
    score: Mapping[tuple[int, int], float]
    oom: frozenset[tuple[int, int]]


def has_grid(run: Run) -> bool:
    """Return True if all samples carry a length and a depth."""
    return bool(run.samples) and all(
        isinstance(value, int) and 0 <= value <= HUGE
        for sample in run.samples
        for value in (sample["meta"].get("length"), sample["meta"].get("depth"))
    )


def grid(run: Run, metric: str) -> Grid:
    """Return the scores of a run by cell. The axes are the protocol's, so that cells not run yet show as missing.

    Raises ValueError for a run without a grid.
    """
    if not has_grid(run):
        raise ValueError(f"{title(run)}: its samples carry no length and depth, so there is no heatmap to draw")
    values: dict[tuple[int, int], list[float]] = {}
    for sample in answered(run):
        if metric in sample["scores"]:
            values.setdefault(_cell(sample), []).append(sample["scores"][metric])
    oom = frozenset(_cell(sample) for sample in run.samples if sample["status"] != "ok")
    cells = values.keys() | oom
    return Grid(
        lengths=sorted({*_axis(run, "lengths"), *(length for length, _ in cells)}),
        depths=sorted({*_axis(run, "depths"), *(depth for _, depth in cells)}),
        score={cell: sum(scores) / len(scores) for cell, scores in values.items()},
        oom=oom,
    )


def _axis(run: Run, key: str) -> list[int]:
    """Return the values of an axis in the protocol, if it has any that can be drawn."""
    values = run.manifest["identity"]["protocol"].get(key)
    if not isinstance(values, list) or len(values) > _LONGEST:
        return []
    return [value for value in values if isinstance(value, int) and 0 <= value <= HUGE]


def _cell(sample: Record) -> tuple[int, int]:
    length, depth = sample["meta"]["length"], sample["meta"]["depth"]
    assert isinstance(length, int) and isinstance(depth, int), "checked by has_grid"
    return length, depth


def heatmap(run: Run, path: str | Path, metric: str | None = None) -> Path:
    """Write the heatmap of one run as a PNG and return its path."""
    metric = check_metric([run], metric)
    stamp = figure.stamp(_shown([run], metric))
    if figure.is_drawn(path, stamp):
        return Path(path)
    cells = grid(run, metric)
    width = min(max(3.4, 0.55 * len(cells.lengths)), 14.0)
    height = min(max(2.2, 0.30 * len(cells.depths)), 6.7)
    picture = figure.new(width + 1.9, height + 1.3)
    axes = picture.add_subplot()
    _panel(axes, run, title(run), cells, metric, width, height, size=10)
    axes.set_xlabel("Context length (tokens)", fontsize=10, color=INK)
    axes.set_ylabel("Needle depth (%)", fontsize=10, color=INK)
    _colour_bar(picture, metric, ax=axes, fraction=0.04, pad=0.02, aspect=28)
    return figure.save(picture, path, stamp)


def heatmap_grid(runs: Sequence[Run], path: str | Path, metric: str | None = None) -> Path:
    """Write one PNG, a panel per run: methods as rows, budgets as columns, those without budget on the left.

    Raises ValueError for runs that cannot be compared.
    """
    check_comparable(runs)
    metric = check_metric(runs, metric)
    runs = sorted(runs, key=order)
    stamp = figure.stamp(_shown(runs, metric))
    if figure.is_drawn(path, stamp):
        return Path(path)
    places = _places(runs)
    rows, columns = (1 + max(place[axis] for place in places) for axis in (0, 1))
    cells = [grid(run, metric) for run in runs]
    letters = max(len(title(run, runs)) for run in runs)
    width = min(max(2.1, 0.38 * len(cells[0].lengths), 0.085 * letters), 4.5)
    height = min(max(1.6, 0.20 * len(cells[0].depths)), 3.4)
    # Fixed places in inches: an automatic layout would give panels without neighbours another size.
    left, top, bottom, right, gap_x, gap_y = 0.8, 0.85, 0.58, 0.95, 0.45, 0.68
    bottom += 0.15 if _dense(cells[0]) else 0  # for slanted labels
    total_x = left + columns * (width + gap_x) - gap_x + right
    total_y = top + rows * (height + gap_y) - gap_y + bottom
    picture = figure.new(total_x, total_y, layout=None)
    for run, cell, (row, column) in zip(runs, cells, places, strict=True):
        x, y = left + column * (width + gap_x), total_y - top - height - row * (height + gap_y)
        axes = picture.add_axes((x / total_x, y / total_y, width / total_x, height / total_y))
        _panel(axes, run, title(run, runs), cell, metric, width, height, size=8.5)
        axes.tick_params(labelbottom=(row + 1, column) not in places, labelleft=(row, column - 1) not in places)
    label = runs[0].manifest["label"]
    heading = f"{label['benchmark']}, {label['model']}"
    picture.text(left / total_x, 1 - 0.2 / total_y, heading, va="top", fontsize=12, color=INK)
    middle = (bottom + total_y - top) / 2 / total_y
    picture.text(0.15 / total_x, middle, "Needle depth (%)", rotation=90, va="center", fontsize=10, color=INK)
    middle = (left + total_x - right) / 2 / total_x
    picture.text(middle, 0.12 / total_y, "Context length (tokens)", ha="center", fontsize=10, color=INK)
    tall = min(total_y - top - bottom, 3.0)
    bar = picture.add_axes(((total_x - 0.75) / total_x, 1 - (top + tall) / total_y, 0.14 / total_x, tall / total_y))
    _colour_bar(picture, metric, cax=bar)
    return figure.save(picture, path, stamp)


def _places(runs: Sequence[Run]) -> list[tuple[int, int]]:
    """Return row and column of each run; runs come in order. Equal method and budget: one below the other."""
    budgets = {run.manifest["label"]["budget"] for run in runs}
    columns = sorted(budgets, key=budget_order)
    places: list[tuple[int, int]] = []
    first_row: dict[str, int] = {}
    for run in runs:
        label = run.manifest["label"]
        column = columns.index(label["budget"])
        row = 0
        if label["budget"] != "full":
            used = [row for row, other in places if columns[other] != "full"]
            row = first_row.setdefault(label["method"], max(used, default=-1) + 1)
        while (row, column) in places:
            row += 1
        places.append((row, column))
    return places


def _panel(
    axes: Axes, run: Run, heading: str, cells: Grid, metric: str, width: float, height: float, size: float
) -> None:
    """Draw one run into axes of about `width` × `height` inches; `size` is the font size of the title."""
    import numpy as np
    from matplotlib.patches import Rectangle

    values = np.full((len(cells.depths), len(cells.lengths)), np.nan)
    for (length, depth), value in cells.score.items():
        values[cells.depths.index(depth), cells.lengths.index(length)] = value
    dense = _dense(cells)
    edges: dict[str, Any] = {} if dense else {"edgecolors": "white", "linewidth": 0.8}
    axes.pcolormesh(values, cmap=_colour_map(), vmin=0, vmax=1, **edges)
    axes.invert_yaxis()
    if dense:
        lines: dict[str, Any] = {"colors": FAINT, "linestyles": (0, (2, 2)), "linewidth": 0.4}
        axes.hlines(range(1, len(cells.depths)), 0, len(cells.lengths), **lines)
        axes.vlines(range(1, len(cells.lengths)), 0, len(cells.depths), **lines)
    room = not dense and width / len(cells.lengths) > 0.36 and height / len(cells.depths) > 0.17
    for row, depth in enumerate(cells.depths):
        for column, length in enumerate(cells.lengths):
            score: float | None = cells.score.get((length, depth))
            oom = (length, depth) in cells.oom
            if score is None:
                face, hatch = (_OOM, None) if oom else (_MISSING, "////")
                axes.add_patch(
                    Rectangle((column, row), 1, 1, fc=face, ec=LINE if hatch else "white", hatch=hatch, lw=0)
                )
            text = "" if score is None or not room else f"{score:.2f}"
            if oom:
                text = f"{text}*" if score is not None else "OOM" if room else "×"
            if text:
                axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=7, color=INK)
    _ticks(axes, cells, width, height)
    _titles(axes, run, heading, cells, metric, size)


def _dense(cells: Grid) -> bool:
    return max(len(cells.lengths), len(cells.depths)) > _DENSE


def _ticks(axes: Axes, cells: Grid, width: float, height: float) -> None:
    """Label every n-th row and column, as many as fit; in a dense grid the lengths stand aslant."""
    thousands = all(length % 500 == 0 for length in cells.lengths) and max(cells.lengths) >= 10_000
    names = [f"{length / 1000:g}k" if thousands else str(length) for length in cells.lengths]
    slanted: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if _dense(cells) else {}
    columns = range(0, len(names), _step(len(names), width / (0.19 if slanted else 0.5)))
    axes.set_xticks([column + 0.5 for column in columns], [names[column] for column in columns], **slanted)
    rows = range(0, len(cells.depths), _step(len(cells.depths), height / 0.19))
    axes.set_yticks([row + 0.5 for row in rows], [str(cells.depths[row]) for row in rows])
    axes.tick_params(length=0, labelsize=8, colors=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _step(number: int, room: float) -> int:
    """Return the smallest round step with which the labels of `number` rows fit where there is room for `room`."""
    return next((step for step in _TICKS if number / step <= room), number)


def _titles(axes: Axes, run: Run, heading: str, cells: Grid, metric: str, size: float) -> None:
    """Write method and requested budget in bold; below, smaller, what was measured."""
    label = run.manifest["label"]
    facts = [f"mean {one_line(metric)} {sum(cells.score.values()) / len(cells.score):.2f}"] if cells.score else []
    share = kept_share(run)
    if share is not None:
        facts.append(f"kept {100 * share:.0f}%")
    if cells.oom:
        facts.append(f"{len(cells.oom)} oom")
    axes.set_title(f"{heading}\n", loc="left", fontsize=size, fontweight="bold", color=INK, linespacing=1.3)
    axes.annotate(" · ".join(facts), (0, 1), (0, 4), "axes fraction", "offset points", fontsize=size - 1.5, color=FAINT)
    if size >= 10:
        axes.set_title(f"{label['model']}\n", loc="right", fontsize=size - 1.5, color=FAINT)


def _colour_map() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("needle", _COLOURS)


def _colour_bar(picture: Figure, metric: str, **place: Any) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scale = ScalarMappable(Normalize(0, 1), _colour_map())
    bar = picture.colorbar(scale, **place)
    bar.set_label(one_line(metric), fontsize=10, color=INK)
    bar.ax.tick_params(labelsize=8, length=2, colors=INK)
    bar.outline.set_visible(False)


def _shown(runs: Sequence[Run], metric: str) -> list[Any]:
    """Return all that a figure of these runs depends on."""
    return [metric] + [
        [
            title(run, runs),
            run.manifest["label"],
            kept_share(run),
            [[s["id"], s["status"], s.get("scores")] for s in run.samples],
        ]
        for run in runs
    ]

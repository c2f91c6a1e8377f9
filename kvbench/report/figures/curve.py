"""Score against budget: a line per method, the full cache dashed, and 95% intervals of the means.

Up to three methods share a panel, with their intervals as bands. More share one with intervals as bars, side by side,
and have a panel each in another figure, with its band and the others in grey.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvbench.report.figures import figure
from kvbench.report.figures.figure import DOUBLE, FAINT, INK, LINE, TALL, TICK, styled
from kvbench.report.figures.palette import line_styles
from kvbench.report.figures.points import Point, Points, apart, by_method
from kvbench.report.runs import budget_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_KINDS = {1: "Share of the cache (%)", 2: "Share of the cache's bytes (%)", 3: "Tokens per KV head"}
_BANDS, _TOGETHER = 3, 10  # methods that share a panel with bands, and with bars
_COLUMNS = 5
_INTERVAL = ": 95% interval of the mean over samples"

Kind = int  # of a budget, see `budget_order`


@styled
def curve(points: Points, heading: str, details: str, path: Path) -> list[Path]:
    """Write score against budget as PNG and PDF, and return the paths of the PNGs; [] for fewer than two budgets.

    Tokens, shares of tokens and shares of bytes have no common axis: each kind has its own panel or figure. `details`
    stand below the heading.
    """
    heading = f"Score against budget: {heading}"
    kinds = _kinds(points.points)
    if max((len({point.budget for point in inside}) for inside in kinds.values()), default=0) < 2:
        return []
    shown = [point.as_json() for point in points.points]
    stamp = figure.stamp(["curve", heading, details, points.score, points.left_out, shown])
    methods = list(by_method(points.points))
    written = []
    if len(methods) <= _TOGETHER:
        written.append(_together(kinds, points, heading, details, path, stamp, methods))
    if len(methods) > _BANDS:
        pages = 0
        for kind, inside in kinds.items():
            if len({point.budget for point in inside}) > 1:
                file = path.with_stem(f"{path.stem}_methods")
                files = _apart(kind, inside, points, heading, details, file, stamp, pages)
                pages += len(files)
                written += files
    return written


def _kinds(points: Sequence[Point]) -> dict[Kind, list[Point]]:
    """Return the points with a budget by its kind."""
    kinds: dict[Kind, list[Point]] = {}
    for point in points:
        if point.budget != "full":
            kinds.setdefault(budget_order(point.budget)[0], []).append(point)
    return dict(sorted(kinds.items()))


def _together(
    kinds: Mapping[Kind, Sequence[Point]],
    points: Points,
    heading: str,
    details: str,
    path: Path,
    stamp: str,
    methods: Sequence[str],
) -> Path:
    """Draw all methods in one panel for each kind of budget."""
    if figure.is_drawn(path, stamp):
        return path
    picture = figure.new(DOUBLE, 2.9)
    grid = picture.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    styles = line_styles(points.methods, methods)
    has_bands = len(methods) <= _BANDS
    moved = dict(zip(methods, apart(len(methods)), strict=True))
    for axes, (kind, inside) in zip(grid, kinds.items(), strict=True):
        for method, line in by_method(inside).items():
            draw = _line if has_bands else _bars
            draw(axes, line, styles[method], method, moved[method])
        _horizontals(axes, points.points)
        _dress(axes, kind, inside, points)
    grid[0].set_ylabel(points.score)
    _headings(
        grid[0],
        heading,
        f"{details}\n{'bands' if has_bands else 'bars'}, side by side{_INTERVAL}{_notes(points)}".strip(),
    )
    handles = {text: handle for axes in grid for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "borderaxespad": 0}
    grid[-1].legend(handles.values(), [figure.wrapped(text, 1.5, TICK) for text in handles], handlelength=2.4, **place)
    return figure.save(picture, path, stamp)


def _apart(
    kind: Kind,
    inside: Sequence[Point],
    points: Points,
    heading: str,
    details: str,
    path: Path,
    stamp: str,
    number: int,
) -> list[Path]:
    """Draw a panel for each method, with the others in grey, on as many pages as needed."""
    lines = by_method(inside)
    names = sorted(lines, key=lambda name: (-max(point.score for point in lines[name]), name))
    style = {"color": "#0072B2", "marker": "o", "ls": "-"}
    fitting = int((TALL - 1.0) / 1.2) * _COLUMNS
    written = []
    for page, first in enumerate(range(0, len(names), fitting), number):
        file = figure.page(path, page)
        written.append(file)
        if figure.is_drawn(file, stamp):
            continue
        own = names[first : first + fitting]
        rows = -(-len(own) // _COLUMNS)
        columns = -(-len(own) // rows)
        picture = figure.new(DOUBLE, 1.2 * rows + 0.9)
        grid = picture.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for place, axes in enumerate(grid.flat):
            if place >= len(own):
                axes.axis("off")
                continue
            for other in lines.values():
                axes.plot(*_coordinates(other), color="#DDDDDD", lw=0.6, zorder=1)
            _line(axes, lines[own[place]], style, own[place])
            _horizontals(axes, [point for point in points.points if point.is_full_cache])
            _dress(axes, kind, inside, points)
            axes.set_xlabel("")
            axes.set_title(
                figure.wrapped(own[place], 5.5 / columns, TICK), fontsize=TICK, fontweight="bold", loc="left", pad=2
            )
            axes.tick_params(labelbottom=place + columns >= len(own))
        picture.supxlabel(_KINDS[kind], fontsize=figure.LABEL)
        picture.supylabel(points.score, fontsize=figure.LABEL)
        picture.suptitle(f"{heading}\n\n", x=0.01, ha="left", fontsize=9, fontweight="bold")
        text = f"{details}{_notes(points)}\ngrey: the other methods; dashed: full cache; bands{_INTERVAL}"
        picture.text(0.01, 1 - 0.2 / picture.get_figheight(), text, fontsize=TICK, color=FAINT, va="top")
        figure.save(picture, file, stamp)
    return written


def _line(axes: Axes, line: Sequence[Point], style: Mapping[str, Any], method: str, moved: float = 1.0) -> None:
    x, y = _coordinates(line)
    x = [moved * value for value in x]
    axes.plot(x, y, **style, mec="white", mew=0.5, label=method)
    low, high = [point.low for point in line], [point.high for point in line]
    if any(top > bottom for top, bottom in zip(high, low, strict=True)):
        axes.fill_between(x, low, high, color=style["color"], alpha=0.13, lw=0)
        for edge in (low, high):
            axes.plot(x, edge, color=style["color"], lw=0.4, alpha=0.5)


def _bars(axes: Axes, line: Sequence[Point], style: Mapping[str, Any], method: str, moved: float) -> None:
    """Draw a line with its intervals as bars, moved sideways so that those of several methods can be told apart."""
    x, y = _coordinates(line)
    x = [moved * value for value in x]
    axes.plot(x, y, **style, mec="white", mew=0.5, label=method)
    axes.vlines(x, [p.low for p in line], [p.high for p in line], color=style["color"], lw=0.6, alpha=0.6, zorder=1.5)


def _coordinates(line: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [budget_order(point.budget)[1] for point in line], [point.score for point in line]


def _horizontals(axes: Axes, points: Sequence[Point]) -> None:
    """Draw the full cache, dashed, and other methods without a budget, dotted."""
    for point in points:
        if point.budget == "full":
            colour, line = (INK, "--") if point.is_full_cache else (FAINT, ":")
            axes.axhline(point.score, color=colour, ls=line, lw=0.9, label=point.method, zorder=1)


def _dress(axes: Axes, kind: Kind, inside: Sequence[Point], points: Points) -> None:
    """Set up the axes: logarithmic budgets, labelled where they were measured."""
    values = sorted({budget_order(point.budget)[1] for point in inside})
    axes.set_xscale("log", base=2)
    axes.set_xticks(values, [f"{value:.0f}" if kind == 3 else f"{100 * value:.3g}" for value in values])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(_KINDS[kind])
    if points.limits is not None:
        axes.set_ylim(points.limits)
    axes.grid(axis="y")
    axes.spines["left"].set_color(LINE)


def _headings(axes: Axes, heading: str, text: str) -> None:
    axes.annotate(text, (0, 1), (0, 4), "axes fraction", "offset points", fontsize=TICK, color=FAINT)
    axes.set_title(heading, loc="left", fontsize=9, fontweight="bold", pad=8 + 8.6 * len(text.splitlines()))


def _notes(points: Points) -> str:
    return f"; {points.notes}" if points.notes else ""

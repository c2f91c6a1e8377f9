"""Score against the bytes that the cache holds, and the front: what no other beats in as few bytes.

Eviction, quantisation and both share this axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvbench.report.bytes_axis import on_front
from kvbench.report.figures import figure
from kvbench.report.figures.figure import DOUBLE, FAINT, INK, TICK, styled
from kvbench.report.figures.palette import line_styles
from kvbench.report.figures.points import Point, Points, apart

_FRONT = "front: no row scores as high with fewer bytes, or higher with equal bytes"
_APART = "points of equal bytes are drawn side by side"
_BARS = "bars: 95% interval; none where the samples do not differ"
_NAMED = 10  # methods that get a colour; of more, those on the front
_EQUAL = 1.01  # sizes with a smaller ratio count as equal
_BUDGETS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 40, 100, 200, 400)  # % of common budgets: ticks
_FINER = (1, 2, 3, 4, 6, 8)  # times powers of ten, where these are not enough


def front(points: Sequence[Point]) -> list[Point]:
    """Return the points on the front, by bytes; see `on_front`."""
    is_on = on_front([point.held_share for point in points], [point.score for point in points])
    best = [point for point, is_best in zip(points, is_on, strict=True) if is_best]
    return sorted(best, key=lambda point: (point.held_share, point.method, point.budget))


@styled
def tradeoff(points: Points, heading: str, details: str, path: Path) -> list[Path]:
    """Write score against bytes as PNG and PDF, and return the path of the PNG; [] for fewer than three points."""
    drawn = [point for point in points.points if point.held_share > 0]
    if len(drawn) < 3 or len({point.held_share for point in drawn}) < 2:
        return []
    heading = f"Score against bytes: {heading}"
    stamp = figure.stamp(
        ["tradeoff", heading, details, points.score, points.left_out, [point.as_json() for point in drawn]]
    )
    if figure.is_drawn(path, stamp):
        return [path]
    picture = figure.new(DOUBLE, 3.2)
    axes = picture.subplots()
    best = front(drawn)
    methods = list(dict.fromkeys(point.method for point in drawn if not point.is_full_cache))
    if len(methods) > _NAMED:
        methods = list(dict.fromkeys(point.method for point in best if not point.is_full_cache))[-_NAMED:]
    styles = line_styles(points.methods, methods)
    named = [point for point in drawn if point.is_full_cache or point.method in styles]
    moved = side_by_side(named, list(styles))
    others = [point for point in drawn if point.method not in styles and not point.is_full_cache]
    count = len({point.method for point in others})
    label = f"{count} other method{'s' if count > 1 else ''}"
    if others:
        places = [point.held_share for point in others], [point.score for point in others]
        axes.plot(*places, marker=".", ls="", color="#C4C4C4", ms=4, label=label, zorder=1.5)
    for point, x in zip(named, moved, strict=True):
        style = {"color": INK, "marker": "*"} if point.is_full_cache else styles[point.method]
        size = 8 if point.is_full_cache else 5
        spread = [[point.score - point.low], [point.high - point.score]]
        axes.errorbar(x, point.score, spread, color=style["color"], elinewidth=0.5, alpha=0.45, fmt="")
        look = {**style, "ls": ""}
        axes.plot(x, point.score, **look, mec="white", mew=0.5, ms=size, label=point.method, zorder=3)
    at = dict(zip(map(id, named), moved, strict=True))
    corners = sorted((at.get(id(point), point.held_share), point.score) for point in best)
    has_front = len(set(corners)) > 1  # one point is no line
    if has_front:
        axes.step(*zip(*corners, strict=True), where="post", color=FAINT, lw=0.9, ls="--", label="front", zorder=1.2)
    _dress(axes, drawn, points)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    ordered = sorted(handles, key=lambda text: (text == label, text == "front"))
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "borderaxespad": 0}
    axes.legend([handles[text] for text in ordered], [figure.wrapped(text, 1.5, TICK) for text in ordered], **place)
    is_moved = any(x != point.held_share for point, x in zip(named, moved, strict=True))
    notes = ["; ".join(filter(None, [details, points.notes])), _FRONT if has_front else ""]
    notes.append("; ".join([_BARS, _APART] if is_moved else [_BARS]))
    text = "\n".join(filter(None, notes))
    axes.annotate(text, (0, 1), (0, 4), "axes fraction", "offset points", fontsize=TICK, color=FAINT)
    axes.set_title(heading, loc="left", fontsize=9, fontweight="bold", pad=8 + 8.6 * len(text.splitlines()))
    return [figure.save(picture, path, stamp)]


def side_by_side(points: Sequence[Point], methods: Sequence[str]) -> list[float]:
    """Return the places of points by their bytes; methods of equal bytes are moved apart, in the order of `methods`.

    A point whose bytes no other method has stays where it is.
    """
    order = {method: place for place, method in enumerate(methods)}
    places = [point.held_share for point in points]
    rest = sorted(range(len(points)), key=lambda at: places[at])
    while rest:
        alike = [at for at in rest if places[at] <= _EQUAL * places[rest[0]]]
        rest = rest[len(alike) :]
        inside = sorted({points[at].method for at in alike}, key=lambda method: order.get(method, len(order)))
        factor = dict(zip(inside, apart(len(inside)), strict=True))
        for at in alike:
            places[at] *= factor[points[at].method]
    return places


def _dress(axes: Any, drawn: Sequence[Point], points: Points) -> None:
    shares = [point.held_share for point in drawn]
    low, high = min(shares) / 1.15, max(shares) * 1.15
    axes.set_xscale("log", base=2)
    ticks = size_ticks(100 * low, 100 * high)
    full = next((point.held_mib / point.held_share for point in drawn if point.held_share), None)
    axes.set_xticks([value / 100 for value in ticks], [f"{value:.3g}" for value in ticks])
    axes.set_xticks([], minor=True)
    mib = "" if full is None else f"; 100% = {full:.3g} MiB"
    axes.set_xlabel(f"Held after compression (% of the full cache's bytes{mib})")
    axes.set_ylabel(points.score)
    axes.set_xlim(low, high)
    if points.limits is not None:
        axes.set_ylim(points.limits)
    axes.grid(axis="y")


def size_ticks(low: float, high: float) -> list[float]:
    """Return at least three round percentages from `low` to `high`: those of common budgets if they are enough."""
    from matplotlib.ticker import MaxNLocator

    for values in (_BUDGETS, [step * 10.0**power for power in range(-3, 3) for step in _FINER]):
        inside = [value for value in values if low <= value <= high]
        if len(inside) > 2:
            return inside
    return [float(value) for value in MaxNLocator(5).tick_values(low, high) if low <= value <= high]

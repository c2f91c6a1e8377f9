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

_NOTE = "bars: 95% interval; front: none scores as high in fewer bytes, or higher in as many; equal bytes: side by side"
_NAMED = 10  # methods that get a colour; of more, those on the front


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
    stamp = figure.stamp(["tradeoff", _NOTE, heading, details, points.score, [point.as_json() for point in drawn]])
    if figure.is_drawn(path, stamp):
        return [path]
    picture = figure.new(DOUBLE, 3.2)
    axes = picture.subplots()
    best = front(drawn)
    methods = list(dict.fromkeys(point.method for point in drawn if not point.is_full_cache))
    if len(methods) > _NAMED:
        methods = list(dict.fromkeys(point.method for point in best if not point.is_full_cache))[-_NAMED:]
    styles = line_styles(methods)
    moved = dict(zip(methods, apart(len(methods)), strict=True))
    others = [point for point in drawn if point.method not in styles and not point.is_full_cache]
    label = f"{len({point.method for point in others})} other methods"
    if others:
        places = [point.held_share for point in others], [point.score for point in others]
        axes.plot(*places, marker=".", ls="", color="#C4C4C4", ms=4, label=label, zorder=1.5)
    for point in drawn:
        if point.is_full_cache or point.method in styles:
            style = (
                {"color": INK, "marker": "*", "ls": ""} if point.is_full_cache else styles[point.method] | {"ls": ""}
            )
            size = 8 if point.is_full_cache else 5
            spread = [[point.score - point.low], [point.high - point.score]]
            x = point.held_share * moved.get(point.method, 1.0)
            axes.errorbar(x, point.score, spread, color=style["color"], elinewidth=0.5, alpha=0.45, fmt="")
            axes.plot(x, point.score, **style, mec="white", mew=0.5, ms=size, label=point.method, zorder=3)
    axes.step(
        [point.held_share for point in best], [point.score for point in best], where="post", color=FAINT, lw=0.9,
        ls="--", label="front", zorder=1.2,
    )  # fmt: skip
    _dress(axes, drawn, points)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    ordered = sorted(handles, key=lambda text: (text == label, text == "front"))
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "borderaxespad": 0}
    axes.legend([handles[text] for text in ordered], [figure.wrapped(text, 1.5, TICK) for text in ordered], **place)
    text = "\n".join(filter(None, [details, _NOTE]))
    axes.annotate(text, (0, 1), (0, 4), "axes fraction", "offset points", fontsize=TICK, color=FAINT)
    axes.set_title(heading, loc="left", fontsize=9, fontweight="bold", pad=8 + 8.6 * len(text.splitlines()))
    return [figure.save(picture, path, stamp)]


def _dress(axes: Any, drawn: Sequence[Point], points: Points) -> None:
    shares = [point.held_share for point in drawn]
    axes.set_xscale("log", base=2)
    ticks = [
        value for power in range(-12, 3) for value in (2.0**power,) if min(shares) / 1.3 <= value <= 1.3 * max(shares)
    ]
    full = next((point.held_mib / point.held_share for point in drawn if point.held_share), None)
    axes.set_xticks(ticks, [f"{100 * value:.3g}" for value in ticks])
    axes.set_xticks([], minor=True)
    mib = "" if full is None else f"; 100% = {full:.3g} MiB"
    axes.set_xlabel(f"Held after compression (% of the full cache's bytes{mib})")
    axes.set_ylabel(points.score)
    axes.set_xlim(min(shares) / 1.15, max(shares) * 1.15)
    if points.top is not None and max(point.high for point in drawn) > 0.5 * points.top:
        axes.set_ylim(-0.03 * points.top, 1.05 * points.top)
    axes.grid(axis="y")

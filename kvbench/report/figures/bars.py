"""Bars of what each method costs: bytes that the cache holds, time to the first token, time per output token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kvbench.report.figures import figure
from kvbench.report.figures.figure import DOUBLE, FAINT, INK, LINE, TALL, TICK, styled
from kvbench.report.figures.points import Point, Points
from kvbench.report.runs import budget_words

_ROW = 0.135  # inches
_PARTS = (("prefill", "#BDBDBD", ""), ("compression", "#0072B2", ""), ("question and rest", "#FFFFFF", "////"))


@styled
def bars(points: Points, heading: str, details: str, path: Path) -> list[Path]:
    """Write memory and times of each method and budget as PNG and PDF, and return the paths of the PNGs."""
    if not points.points:
        return []
    heading = f"Memory and latency: {heading}"
    details = "; ".join(filter(None, [details, points.notes]))
    fitting = int((TALL - 1.2) / _ROW)
    written = []
    for number, first in enumerate(range(0, len(points.points), fitting)):
        file, own = figure.page(path, number), points.points[first : first + fitting]
        written.append(file)
        stamp = figure.stamp(["bars 2", heading, details, [point.as_json() for point in own]])
        if not figure.is_drawn(file, stamp):
            figure.save(_page(own, heading, details), file, stamp)
    return written


def _page(own: Sequence[Point], heading: str, details: str) -> Any:
    names = [", ".join(filter(None, [point.method, budget_words(point.budget)])) for point in own]
    picture = figure.new(DOUBLE, _ROW * len(own) + 1.15)
    memory, first, step = picture.subplots(1, 3, sharey=True, width_ratios=(1, 1.2, 1))
    places = range(len(own))
    _bars(memory, own, places, lambda point: point.held_mib, INK)
    memory.set_xlabel("Held after compression (MiB)")
    left = [0.0] * len(own)
    for label, colour, hatch in _PARTS:
        parts = [_part(point, label) for point in own]
        look = {"color": colour} if not hatch else {"facecolor": colour, "edgecolor": FAINT, "hatch": hatch, "lw": 0.4}
        first.barh(places, parts, 0.7, left=left, label=label, **look)
        left = [before + part for before, part in zip(left, parts, strict=True)]
    first.set_xlabel("Time to first token (s)")
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.1}
    legend = first.legend(ncols=3, handlelength=1, columnspacing=0.8, **place)
    legend.set_in_layout(False)  # it is wider than its panel, and nothing stands above the next
    slow = max(point.seconds.get("tpot_s", 0.0) for point in own) >= 1
    unit, factor = ("s", 1) if slow else ("ms", 1000)
    _bars(step, own, places, lambda point: factor * point.seconds.get("tpot_s", 0.0), INK)
    step.set_xlabel(f"Time per output token ({unit})")
    memory.set_yticks(list(places), [figure.wrapped(text, 2.1, TICK, lines=1) for text in names])
    memory.set_ylim(len(own) - 0.4, -0.6)
    for axes in (memory, first, step):
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.margins(x=0.14)
        axes.set_xlim(left=0)
        axes.spines["left"].set_color(LINE)
    picture.suptitle(f"{heading}\n\n", x=0.01, ha="left", fontsize=9, fontweight="bold")
    note = "times are those of the batch that a row ran in; rows that share a prefill share its time"
    text = "; ".join(filter(None, [details, note]))
    picture.text(0.01, 1 - 0.2 / picture.get_figheight(), text, fontsize=TICK, color=FAINT, va="top")
    return picture


def _part(point: Point, label: str) -> float:
    prefill, compression = (point.seconds.get(key, 0.0) for key in ("prefill_s", "compress_s"))
    if label == _PARTS[-1][0]:
        return max(0.0, point.seconds.get("ttft_s", 0.0) - prefill - compression)
    return prefill if label == "prefill" else compression


def _bars(axes: Any, own: Sequence[Point], places: Sequence[int], read: Callable[[Point], float], colour: str) -> None:
    """Draw bars with their values, so that they can be read off without the axis."""
    values = [read(point) for point in own]
    axes.barh(places, values, 0.7, color=["#4D4D4D" if point.is_full_cache else "#9E9E9E" for point in own])
    for place, value in zip(places, values, strict=True):
        if value:
            axes.annotate(
                _short(value),
                (value, place),
                (2, 0),
                textcoords="offset points",
                va="center",
                fontsize=5.5,
                color=colour,
            )


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

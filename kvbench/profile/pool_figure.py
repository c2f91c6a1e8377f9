"""The figure of the pool: tokens per second against the size of the pool, of decode steps and of whole requests."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvbench.profile.crossover import FULL_CACHES, MEMORY, RATES, Crossover, compared, crossovers, size
from kvbench.profile.figure import Line, label_of, line_of, styles_of
from kvbench.report.figures import figure
from kvbench.report.figures.figure import FAINT, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANEL = (4.6, 2.9)  # inches
_TITLES = {"tokens_per_s": "Decoding (tokens/s)", "request_tokens_per_s": "Whole requests (tokens/s)"}
_CONSTRAINED, _UNCONSTRAINED = "full cache, same pool", "full cache, all memory"

Row = Mapping[str, Any]


def draw(rows: Sequence[Row], heading: str, details: str, path: Path) -> Path | None:
    """Write the figure of a pool's table as a PNG. Return None, without a file, if no line would have two points.

    A column of panels for each context length and kernel. Both axes are logarithmic.
    """
    places: dict[tuple[int, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row["kernel"], row["context"])):
        places.setdefault((row["context"], row["kernel"]), []).append(row)
    if max((len({row["pool"] for row in of_place} - {MEMORY}) for of_place in places.values()), default=0) < 2:
        return None
    stamp = figure.stamp([heading, details, "pool", list(map(dict, rows))])
    if figure.is_drawn(path, stamp):
        return path
    styles, comparisons = styles_of(rows), crossovers(rows)
    width = max(7.6, len(places) * _PANEL[0] + 2.0)
    below = textwrap.wrap(details, int(15 * width), break_long_words=False, break_on_hyphens=False)
    picture = figure.new(width, 2 * _PANEL[1] + 0.6 + 0.15 * len(below))
    grid = picture.subplots(2, len(places), sharex="col", squeeze=False)
    for column, ((context, kernel), of_place) in zip(grid.T, places.items(), strict=True):
        for axes, rate in zip(column, RATES, strict=True):
            _lines(axes, of_place, rate, styles)
            here = [c for c in comparisons if (c.context, c.kernel, c.rate) == (context, kernel, rate)]
            _mark(axes, of_place, here, styles)
            _dress(axes, sorted({row["pool"] for row in of_place if row["pool"] != MEMORY}))
        several = len({key[1] for key in places}) > 1
        column[0].set_title(f"context {context}" + (f", kernel {kernel}" if several else ""), fontsize=9, color=INK)
        column[1].set_xlabel("Pool (tokens in each layer)", fontsize=9.5, color=INK)
    for axes, rate in zip(grid[:, 0], RATES, strict=True):
        axes.set_ylabel(_TITLES[rate], fontsize=9.5, color=INK)
    lead = "\n" * len(below)
    picture.suptitle(f"{heading}{lead}", x=0.012, ha="left", fontsize=11, fontweight="bold", color=INK, linespacing=1.1)
    height = picture.get_figheight()
    picture.text(0.012, 1 - 0.3 / height, "\n".join(below), fontsize=8, color=FAINT, va="top", linespacing=1.3)
    handles = {text: h for axes in grid.flat for h, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    outside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.02, 1), "borderaxespad": 0}
    grid[0, -1].legend(handles.values(), handles, frameon=False, fontsize=8.5, handlelength=2.6, **outside)
    return figure.save(picture, path, stamp)


def _lines(axes: Axes, rows: Sequence[Row], rate: str, styles: Mapping[Line, Mapping[str, Any]]) -> None:
    """Draw the methods as lines, the full cache of the same pool dashed, and that with all memory as a level."""
    for line, style in styles.items():
        of_line = sorted((r for r in rows if line_of(r) == line and r["pool"] != MEMORY), key=lambda r: int(r["pool"]))
        points = [(row["pool"], row[rate]) for row in of_line if row[rate]]
        if points:
            x, y = zip(*points, strict=True)
            own = {"ls": "--", "label": _CONSTRAINED} if line[2] else {"label": label_of(line)}
            axes.plot(x, y, **(dict(style) | own), ms=5, mec="white", mew=0.6, lw=1.6)
        for status, word in (("oom", "oom"), ("no_room", "no row fits")):
            lost = [row["pool"] for row in of_line if row["status"] == status]
            bottom = axes.get_xaxis_transform()
            for place in lost:
                axes.plot([place], [0.03], color=style["color"], marker="x", ls="", ms=6, mew=1.6, transform=bottom)
                axes.annotate(word, (place, 0.03), (0, 6), bottom, "offset points", ha="center", fontsize=7)
    for row in rows:
        if row["pool"] == MEMORY and row[rate]:
            limit = ", the limit of rows" if row["capped"] else ""
            about = f"{_UNCONSTRAINED}\n({row['batch']} rows, {size(row['pool_tokens'])} tokens{limit})"
            axes.axhline(row[rate], color=FAINT, ls=(0, (6, 3)), lw=1.3, zorder=1.8, label=about)


def _mark(
    axes: Axes, rows: Sequence[Row], comparisons: Sequence[Crossover], styles: Mapping[Line, Mapping[str, Any]]
) -> None:
    """Mark the pool sizes at which a method becomes faster or slower than a full cache."""
    for crossover in comparisons:
        own = [row for row in rows if (row["name"], row["budget"], row["full_cache"]) == _key(crossover)]
        points = {point.pool: point for point in compared(own, rows, crossover.rate, crossover.full)}
        for crossing in crossover.crossings:
            if crossing.pool is None:
                continue
            low, high = points[crossing.low], points[crossing.high]
            y = _value(crossing.pool, (low.pool, low.method), (high.pool, high.method))
            colour = styles[_key(crossover)]["color"]
            axes.plot([crossing.pool], [y], marker="o", ms=10, mfc="none", mec=colour, mew=1.4, ls="", zorder=3)
            offset, across = ((7, -11), "left") if crossover.full == FULL_CACHES[0] else ((-7, 7), "right")
            axes.annotate(
                size(crossing.pool), (crossing.pool, y), offset, textcoords="offset points", ha=across, fontsize=8
            )


def _key(crossover: Crossover) -> Line:
    return crossover.name, crossover.budget, False


def _value(pool: int, low: tuple[int, float], high: tuple[int, float]) -> float:
    """Return the rate at a size between two others, as the line of the figure has it."""
    import numpy as np

    sizes, rates = np.log([low[0], high[0]]), np.log([low[1], high[1]])
    return float(np.exp(np.interp(np.log(pool), sizes, rates)))


def _dress(axes: Axes, places: Sequence[int]) -> None:
    """Make the axes logarithmic, with labels at the measured sizes."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log", base=2)
    axes.set_xticks(places, [size(place) for place in places])
    axes.set_xticks([], minor=True)
    axes.set_xlim(places[0] / 1.25, places[-1] * 1.25)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="minor", length=0)
    axes.margins(y=0.12)
    axes.grid(axis="y", color="#E6E6E6", lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5, length=3, colors=INK)
    axes.spines[["top", "right"]].set_visible(False)

"""The figure: decode latency and peak memory, two panels for each batch size (or context) and kernel."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvbench.report.figures import figure
from kvbench.report.figures.figure import FAINT, INK
from kvbench.report.figures.palette import COLOURS, MARKERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DASHES = ("-", "--", ":", "-.")  # one for each budget of a method
_PANEL = (4.2, 2.8)  # inches
_WORDS = {"context": "Context (tokens)", "batch": "Batch (rows)"}

Row = Mapping[str, Any]
Line = tuple[str, str, bool]  # name of the method, budget, True for the full cache


def draw(rows: Sequence[Row], heading: str, details: str, path: Path, *, without_base: bool) -> Path | None:
    """Write the figure of a table's rows as a PNG. Return None, without a file, if no line would have two points.

    Lines run over context lengths, with a column of panels for each batch size. If there is only one context, they run
    over batch sizes.

    Args:
        without_base: show the memory without what was used before, as it is measured on a CPU.
    """
    contexts, batches = ({row[axis] for row in rows} for axis in ("context", "batch"))
    across, column = ("batch", "context") if len(contexts) == 1 and len(batches) > 1 else ("context", "batch")
    panels: dict[tuple[str, int], list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row["kernel"], row[column])):
        panels.setdefault((row["kernel"], row[column]), []).append(row)
    if max((len({row[across] for row in of_panel}) for of_panel in panels.values()), default=0) < 2:
        return None
    stamp = figure.stamp([heading, details, without_base, list(map(dict, rows))])
    if figure.is_drawn(path, stamp):
        return path
    styles = styles_of(rows)
    width = max(7.6, len(panels) * _PANEL[0] + 1.9)
    below = textwrap.wrap(
        details, int(15 * width), break_long_words=False, break_on_hyphens=False
    )  # an inch holds 15 characters of the small type
    picture = figure.new(width, 2 * _PANEL[1] + 0.55 + 0.15 * len(below))
    grid = picture.subplots(2, len(panels), sharex="col", squeeze=False)
    peaks = [shown for row in rows if (shown := (_risen if without_base else _peak)(row)) is not None]
    unit, size = ("GiB", 2**30) if max(peaks, default=0) >= 2**30 else ("MiB", 2**20)
    for (latency, memory), ((kernel, place), of_panel) in zip(grid.T, panels.items(), strict=True):
        _lines(latency, of_panel, across, styles, _step, 1e-3)
        _lines(memory, of_panel, across, styles, _risen if without_base else _peak, size)
        several = len({key[0] for key in panels}) > 1
        latency.set_title(f"{column} {place}" + (f", kernel {kernel}" if several else ""), fontsize=9, color=INK)
        for axes in (latency, memory):
            _dress(axes, sorted({row[across] for row in of_panel}))
        memory.set_xlabel(_WORDS[across], fontsize=9.5, color=INK)
    grid[0, 0].set_ylabel("Decode step (ms)", fontsize=9.5, color=INK)
    label = f"Peak memory ({unit})" + ("\nwithout the weights" if without_base else "")
    grid[1, 0].set_ylabel(label, fontsize=9.5, color=INK)
    lead = "\n" * len(below)  # room for the lines below the heading
    picture.suptitle(f"{heading}{lead}", x=0.012, ha="left", fontsize=11, fontweight="bold", color=INK, linespacing=1.1)
    height = picture.get_figheight()
    picture.text(0.012, 1 - 0.3 / height, "\n".join(below), fontsize=8, color=FAINT, va="top", linespacing=1.3)
    handles = {text: h for axes in grid.flat for h, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    ordered = [text for text in (label_of(line) for line in styles) if text in handles]
    outside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.02, 1), "borderaxespad": 0}
    legend = [handles[text] for text in ordered]
    grid[0, -1].legend(legend, ordered, frameon=False, fontsize=8.5, handlelength=2.6, **outside)
    return figure.save(picture, path, stamp)


def _step(row: Row) -> float | None:
    seconds: float | None = row["tpot_s"]
    return seconds


def _peak(row: Row) -> float | None:
    total: int | None = row["peak_bytes"]
    return total


def _risen(row: Row) -> float | None:
    return None if row["peak_bytes"] is None else row["peak_bytes"] - row["base_bytes"]


def styles_of(rows: Sequence[Row]) -> dict[Line, dict[str, Any]]:
    """Return colour and marker for each method, dashes for its budgets; the full cache is black, below the others."""
    lines = list(dict.fromkeys(map(line_of, rows)))
    methods = list(dict.fromkeys(name for name, _, is_full in lines if not is_full))
    styles: dict[Line, dict[str, Any]] = {}
    for line in lines:
        name, _, is_full = line
        if is_full:
            styles[line] = {"color": INK, "marker": "o", "ls": "-", "zorder": 1.9}
            continue
        place, rank = methods.index(name), [other for other in lines if other[0] == name].index(line)
        look = {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[(place + 1) % len(MARKERS)]}
        styles[line] = look | {"ls": _DASHES[rank % len(_DASHES)]}
    return styles


def line_of(row: Row) -> Line:
    """Return the line that a row belongs to."""
    return row["name"], row["budget"], row["full_cache"]


def label_of(line: Line) -> str:
    """Return a line's name in the legend."""
    return line[0] if line[1] == "full" else f"{line[0]}, {line[1]}"


def _lines(
    axes: Axes,
    rows: Sequence[Row],
    across: str,
    styles: Mapping[Line, Mapping[str, Any]],
    value: Callable[[Row], float | None],
    unit: float,
) -> None:
    """Draw a line per method and budget, in multiples of `unit`. A cell out of memory is a cross at the top."""
    for line, style in styles.items():
        of_line = sorted((row for row in rows if line_of(row) == line), key=lambda row: int(row[across]))
        points = [(row[across], shown / unit) for row in of_line if (shown := value(row)) is not None]
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, **style, ms=5, mec="white", mew=0.6, lw=1.6, label=label_of(line))
        lost = [row[across] for row in of_line if row["status"] == "oom"]
        if lost:
            top = axes.get_xaxis_transform()
            axes.plot(lost, [0.97] * len(lost), color=style["color"], marker="x", ls="", ms=6, mew=1.6, transform=top)
            for place in lost:
                axes.annotate("oom", (place, 0.97), (0, -6), top, "offset points", ha="center", va="top", fontsize=7)


def _dress(axes: Axes, places: Sequence[int]) -> None:
    """Make the axes logarithmic, with labels at the measured values; values start at 0, so that heights compare."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, [f"{place // 1024}k" if place % 1024 == 0 else str(place) for place in places])
    axes.set_xticks([], minor=True)
    axes.set_xlim(places[0] / 1.2, places[-1] * 1.2)
    axes.margins(y=0.12)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color="#E6E6E6", lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5, length=3, colors=INK)
    axes.spines[["top", "right"]].set_visible(False)

"""A suite's average against the budget: a line per method, the full cache as a dashed line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvbench.common.text import one_line
from kvbench.report.figures import figure
from kvbench.report.figures.figure import FAINT, INK
from kvbench.report.runs import budget_order
from kvbench.report.suite import SuiteRow, SuiteTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# distinguishable without colour vision, and by their markers in black and white
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#6A3D9A",
    "#8C564B",
    "#7F7F7F",
    "#BCBD22",
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
_PANEL = (4.6, 3.4)  # inches
_KINDS = {1: "Share of the cache (%)", 2: "Share of the cache's bytes (%)", 3: "Tokens per KV head"}


def curve(table: SuiteTable, heading: str, details: str, path: Path) -> Path | None:
    """Write the figure of a `suite_table` as a PNG and return its path; None where there are fewer than two budgets.

    `details` stand below the heading. Rows that miss datasets which others have are left out, and a note says so: their
    average is of something else.
    """
    shown, left_out = _comparable(table)
    panels = _panels(shown)
    if max((len({row["budget"] for row in rows}) for rows in panels.values()), default=0) < 2:
        return None
    averages = [[row["method"], row["budget"], _average(table, row)] for row in shown]
    stamp = figure.stamp([heading, details, table["lead"], averages, left_out])
    if figure.is_drawn(path, stamp):
        return path
    picture = figure.new(len(panels) * _PANEL[0] + 1.8, _PANEL[1] + 0.6)
    axes = picture.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    styles = dict.fromkeys(row["method"] for row in shown if row["budget"] != "full")
    whole = [row for row in shown if row["budget"] == "full"]
    for axis, (kind, rows) in zip(axes, panels.items(), strict=True):
        _lines(axis, table, rows, list(styles))
        _horizontals(axis, table, whole)
        _dress(axis, kind, [row["budget"] for row in rows])
    axes[0].set_ylabel(_label(table, shown), fontsize=10, color=INK)
    axes[0].set_title(f"{heading}\n", loc="left", fontsize=11, fontweight="bold", color=INK, linespacing=1.2)
    axes[0].annotate(details, (0, 1), (0, 5), "axes fraction", "offset points", fontsize=8, color=FAINT)
    if left_out:
        number = "1 row" if left_out == 1 else f"{left_out} rows"
        axes[0].set_xlabel(
            f"{axes[0].get_xlabel()}\n({number} left out, as datasets are missing)", fontsize=10, color=INK
        )
    handles = {text: handle for axis in axes for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.02, 1), "borderaxespad": 0}
    axes[-1].legend(handles.values(), handles.keys(), frameon=False, fontsize=9, **place)
    return figure.save(picture, path, stamp)


def _comparable(table: SuiteTable) -> tuple[list[SuiteRow], int]:
    """Return the rows with as many datasets as the fullest one, and the number of those with some, but fewer."""
    counts = [row["means"][table["lead"]]["n"] for row in table["rows"]]
    shown = [row for row, count in zip(table["rows"], counts, strict=True) if count and count == max(counts)]
    return shown, sum(0 < count < max(counts) for count in counts)


def _average(table: SuiteTable, row: SuiteRow) -> float:
    score = row["means"][table["lead"]]["score"]
    assert score is not None, "rows without any dataset are left out"
    return score


def _panels(rows: Sequence[SuiteRow]) -> dict[str, list[SuiteRow]]:
    """Return the rows with a budget by its kind: tokens, shares and bytes have no common axis."""
    panels: dict[str, list[SuiteRow]] = {}
    for row in rows:
        if row["budget"] != "full":
            kind = _KINDS[budget_order(row["budget"])[0]]
            panels.setdefault(kind, []).append(row)
    return dict(sorted(panels.items()))


def _lines(axes: Axes, table: SuiteTable, rows: Sequence[SuiteRow], methods: Sequence[str]) -> None:
    for method in dict.fromkeys(row["method"] for row in rows):
        points = sorted(
            (budget_order(row["budget"])[1], _average(table, row)) for row in rows if row["method"] == method
        )
        style = methods.index(method)
        colour, marker = COLOURS[style % len(COLOURS)], MARKERS[style % len(MARKERS)]
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=colour, marker=marker, ms=5, mec="white", mew=0.6, lw=1.6, label=method)


def _horizontals(axes: Axes, table: SuiteTable, rows: Sequence[SuiteRow]) -> None:
    """Draw the full cache, dashed, and other methods without a budget, dotted."""
    for row in rows:
        colour, line = (INK, "--") if row["is_full_cache"] else (FAINT, ":")
        axes.axhline(_average(table, row), color=colour, ls=line, lw=1.2, label=row["method"], zorder=1)


def _dress(axes: Axes, kind: str, budgets: Sequence[str]) -> None:
    """Set up the axes: logarithmic budgets, labelled where they were measured."""
    values = sorted({budget_order(budget)[1] for budget in budgets})
    axes.set_xscale("log", base=2)
    share = kind != _KINDS[3]
    axes.set_xticks(values, [f"{100 * value:.3g}" if share else f"{value:.0f}" for value in values])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(kind, fontsize=10, color=INK)
    axes.grid(axis="y", color="#E6E6E6", lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5, length=3, colors=INK)
    axes.spines[["top", "right"]].set_visible(False)


def _label(table: SuiteTable, rows: Sequence[SuiteRow]) -> str:
    lead, mean = table["lead"], rows[0]["means"][table["lead"]]
    return one_line(lead) + ("" if mean["n"] == mean["of"] else f" ({mean['n']} of {mean['of']} datasets)")

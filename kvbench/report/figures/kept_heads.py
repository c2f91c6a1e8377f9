"""Kept tokens by layer and KV head: how a method spreads its budget, as it was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kvbench.report.figures import figure
from kvbench.report.figures.figure import DOUBLE, FAINT, INK, LINE, TALL, TICK, styled
from kvbench.report.figures.palette import share_map
from kvbench.store import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 6  # panels in a row


def head_shares(records: Sequence[Record]) -> NDArray[np.float64] | None:
    """Return the mean share of the prompt that each KV head kept, [layers, heads]; None where nothing is recorded.

    Records whose `kept` is not a table of counts, or has another shape than the first, do not count.
    """
    total, count = None, 0
    for record in records:
        kept, span = record.get("kept"), record.get("span")
        if record["status"] != "ok" or not isinstance(span, int) or span < 1:
            continue
        table = _table(kept)
        if table is None or (total is not None and total.shape != table.shape):
            continue
        total = table / span if total is None else total + table / span
        count += 1
    return None if total is None else total / count


def _table(kept: object) -> NDArray[np.float64] | None:
    if not isinstance(kept, list) or not kept or not all(isinstance(row, list) and row for row in kept):
        return None
    if any(len(row) != len(kept[0]) or not all(isinstance(value, int) for value in row) for row in kept):
        return None
    return np.array(kept, dtype=np.float64)


@styled
def kept_heads(shares: Mapping[str, NDArray[np.float64]], heading: str, details: str, path: Path) -> list[Path]:
    """Write a panel per name with the share that each head kept, as PNG and PDF. Return the paths of the PNGs.

    Layers run downwards from the first. The bars on the right are the means of the layers. All panels have one scale.
    """
    if not shares:
        return []
    heading = f"Kept tokens by layer and KV head: {heading}"
    names = list(shares)
    layers = max(len(table) for table in shares.values())
    tall = min(2.6, max(1.0, 0.05 * layers))
    fitting = int((TALL - 1.0) / (tall + 0.5)) * _COLUMNS
    most = max(float(table.max()) for table in shares.values())
    written = []
    for number, first in enumerate(range(0, len(names), fitting)):
        file, own = figure.page(path, number), names[first : first + fitting]
        written.append(file)
        content = [[name, np.round(shares[name], 6).tolist()] for name in own]
        stamp = figure.stamp(["kept heads", heading, details, most, content])
        if not figure.is_drawn(file, stamp):
            figure.save(_page({name: shares[name] for name in own}, heading, details, most, tall), file, stamp)
    return written


def _page(shares: Mapping[str, NDArray[np.float64]], heading: str, details: str, most: float, tall: float) -> Any:
    columns = min(_COLUMNS, max(3, len(shares)))
    rows = -(-len(shares) // columns)
    picture = figure.new(DOUBLE, rows * (tall + 0.42) + 0.75)
    grid = picture.subplots(rows, columns, squeeze=False)
    for place, axes in enumerate(grid.flat):
        axes.axis("off")
        if place < len(shares):
            name = list(shares)[place]
            image = _panel(axes, name, shares[name], most, is_left=place % columns == 0)
    bar = picture.colorbar(image, ax=grid, shrink=min(1.0, 1.8 / (rows * tall)), aspect=16, pad=0.01)
    bar.set_label("Kept tokens (% of the prompt)")
    bar.outline.set_visible(False)
    picture.suptitle(f"{heading}\n", x=0.01, ha="left", fontsize=9, fontweight="bold")
    note = "bars: mean of each layer, scaled in each panel; dotted: mean of all layers"
    text = "; ".join(filter(None, [details, note]))
    picture.text(0.01, 1 - 0.2 / picture.get_figheight(), text, fontsize=TICK, color=FAINT, va="top")
    picture.supxlabel("KV head, and mean of the layer", fontsize=figure.LABEL)
    picture.supylabel("Layer", fontsize=figure.LABEL)
    return picture


def _panel(axes: Axes, name: str, shares: NDArray[np.float64], most: float, is_left: bool) -> Any:
    """Draw the table of a method in the left part of its panel, and the means of the layers in the right part."""
    layers, heads = shares.shape
    cells, means = axes.inset_axes((0, 0, 0.66, 1)), axes.inset_axes((0.7, 0, 0.28, 1))
    image = cells.imshow(100 * shares, aspect="auto", cmap=share_map(), vmin=0, vmax=100 * most, interpolation="none")
    step = max(1, -(-heads // 8))
    cells.set_xticks(range(0, heads, step))
    cells.set_yticks(range(0, layers, next(s for s in (1, 2, 5, 10, 20, 50, 100, 1000) if layers / s <= 8)))
    cells.tick_params(length=0, pad=1.5, labelleft=is_left)
    average = shares.mean(1)
    means.barh(range(layers), average, 0.9, color="#8A8A8A")
    means.axvline(float(shares.mean()), color=INK, lw=0.6, ls=":")
    means.set(xlim=(0, 1.05 * float(average.max()) or 1), ylim=(layers - 0.5, -0.5), xticks=[], yticks=[])
    for inset in (cells, means):
        for spine in inset.spines.values():
            spine.set_visible(inset is cells)
            spine.set(color=LINE, linewidth=0.5)
    axes.set_title(
        figure.wrapped(name, 0.95, TICK), fontsize=TICK, fontweight="bold", loc="left", pad=3, linespacing=1.05
    )
    return image

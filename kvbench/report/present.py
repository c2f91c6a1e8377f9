"""The report of runs: a table per group of comparable runs on the console, the same and figures in a folder."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import cast

from kvbench.common.files import write_atomic
from kvbench.common.text import one_line
from kvbench.report.figures.draw import draw
from kvbench.report.figures.figure import png_alone
from kvbench.report.figures.shown import Shown
from kvbench.report.formats import csv_text, escaped, html_page
from kvbench.report.group import Group
from kvbench.report.group_pairs import group_pairs, run_key, table_key
from kvbench.store import RunNumbers, load_numbers, load_run, numbers_of
from kvbench.store.numbers import ReadRun

log = logging.getLogger(__name__)

_DRAWN = 200_000  # most samples of a table with figures


def present(
    runs: Sequence[RunNumbers | ReadRun],
    out: Path | None,
    metric: str | None = None,
    store: Path | None = None,
    form: str = "table",
    by: str = "method",
    palette: str = "safe",
    pdf: bool = True,
) -> None:
    """Print a table per group of comparable runs, and write tables and figures to a folder of `out` per group.

    Files come first: nothing is lost when the reader of the output goes away. What is written covers also the
    comparable runs in the folder `store`, so that it grows with the store. Of these the full cache is printed, too, as
    the baseline, and in a suite what a printed row has of other datasets. `by` is "method" or "bytes": the order of
    rows. `pdf` is False for figures as PNG alone.
    """
    numbers = [numbers_of(run) for run in runs]
    related = [] if store is None else _related(numbers, store)
    pairs = group_pairs(numbers, related, metric, by)
    folders: list[Path] = []
    try:
        if out is not None:
            with nullcontext() if pdf else png_alone():
                folders += [_write(written, metric, out, palette) for _, written in pairs]
    finally:  # a full disk must not hide the tables
        _print([printed for printed, _ in pairs], form)
    for folder in folders:
        print(f"Tables and figures: {one_line(str(folder))}", file=sys.stdout if form == "table" else sys.stderr)


def _related(runs: Sequence[RunNumbers], store: Path) -> list[RunNumbers]:
    """Return the runs in a store that may share a table with `runs`, which are not among them. No others are read."""
    shown = {run_key(run.manifest) for run in runs}
    settings = {table_key(run.manifest) for run in runs}
    return load_numbers(store, wanted=lambda other: table_key(other) in settings and run_key(other) not in shown)


def _print(shown: Sequence[Group], form: str) -> None:
    if form == "csv":
        print(csv_text([line for group in shown for line in group.scores()]), end="")
    elif form == "json":
        print(json.dumps([group.content for group in shown], indent=2))
    elif form == "latex":
        print("\n\\bigskip\n\n".join(group.latex() for group in shown), end="")
    elif form == "html":
        print(html_page("kvbench results", [part for group in shown for part in group.html()]), end="")
    else:
        for group in shown:
            print(f"## {escaped(group.name)}\n\n{group.console()}\n")
        print("\n".join(dict.fromkeys(group.legend for group in shown)))


def _write(group: Group, metric: str | None, out: Path, palette: str) -> Path:
    """Write the tables of the runs, and their figures.

    The folder's name comes from stored text. It is a name, never a path: see `kvbench.store.schema.Name`.
    """
    folder = out / group.folder
    if folder.parent != out:
        raise ValueError(f"{group.folder!r}: not the name of a folder, so no report is written there")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "table.md", group.markdown())
    write_atomic(folder / "table.json", json.dumps(group.content, indent=2) + "\n")
    write_atomic(folder / "table.tex", group.latex())
    write_atomic(folder / "table.html", html_page(group.name, group.html()))
    write_atomic(folder / "scores.csv", csv_text(cast(Sequence[Mapping[str, object]], group.scores())))
    _draw(group, metric, folder, palette)
    return folder


def _draw(group: Group, metric: str | None, folder: Path, palette: str) -> None:
    """Draw the figures of a table. They need the records, so those of a very large table are left out."""
    samples = sum(len(run.columns.ids) for run in group.runs)
    if samples > _DRAWN:
        log.warning("%s: %d samples, so no figures; --benchmark and a deeper folder name fewer runs", folder, samples)
        return
    runs = [load_run(run.path, bulky=False) for run in group.runs]
    words = group.name.partition(" (protocol ")[0].split(", ")
    draw(Shown(runs, group.suite, ", ".join(words[:2]), ", ".join(words[2:]), folder, metric, palette))

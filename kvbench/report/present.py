"""The report of runs: a table per group of comparable runs on the console, the same and figures in a folder."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import cast

from kvbench.common.files import write_atomic
from kvbench.common.text import one_line
from kvbench.report.bytes_axis import bytes_order, with_front
from kvbench.report.figures.draw import draw
from kvbench.report.figures.figure import png_alone
from kvbench.report.figures.shown import Shown
from kvbench.report.formats import Cells, csv_text, escaped, html_page, markdown
from kvbench.report.group import Group
from kvbench.report.legends import FRONT, LEGEND, SUITE_LEGEND
from kvbench.report.runs import Setting, groups, is_full_cache, setting, table_mark
from kvbench.report.suite import SuiteTable, suite_table
from kvbench.report.suite_groups import SuiteSetting, row_key, suite_groups, suite_setting
from kvbench.report.suite_text import tables, terminal
from kvbench.report.table import cells, table
from kvbench.report.written import replace_earlier
from kvbench.store import Manifest, RunNumbers, load_numbers, numbers_of
from kvbench.store.numbers import ReadRun
from kvbench.store.read import run_key

FIGURES = ("best", "all", "none")


def present(
    runs: Sequence[RunNumbers | ReadRun],
    out: Path | None,
    metric: str | None = None,
    store: Path | None = None,
    form: str = "table",
    by: str = "method",
    palette: str = "safe",
    pdf: bool = True,
    figures: str = "best",
    source: object = None,
) -> None:
    """Print a table per group of comparable runs, and write tables and figures to a folder of `out` per group.

    Files come first: nothing is lost when the reader of the output goes away. What is written covers also the
    comparable runs in the folder `store`, so that it grows with the store. Of these the full cache is printed, too, as
    the baseline, and in a suite what a printed row has of other datasets. `by` is "method" or "bytes": the order of
    rows. `pdf` is False for figures as PNG alone. `figures` is one of `FIGURES`: a large table has
    figures of its best methods, of all, or none. `source` names the runs of a report: what the last report of this
    source wrote to `out` and this one does not is deleted. Without it, that is so for each table by itself.
    """
    numbers = [numbers_of(run) for run in runs]
    related = [] if store is None else _related(numbers, store)
    pairs = [*_single(numbers, related, metric, by), *_suites(numbers, related, metric, by)]
    pairs = _with_distinct_models(pairs)
    folders: list[Path] = []
    try:
        if out is not None:
            files: list[Path] = []
            for _, group in pairs:
                with nullcontext() if pdf else png_alone():
                    written = _write(group, metric, out, palette, figures)
                folders.append(out / group.folder)
                files += written
                if source is None:
                    replace_earlier(out / group.folder, "table", written)
            if source is not None:
                replace_earlier(out, ["report", source], files)
    finally:  # a full disk must not hide the tables
        _print([printed for printed, _ in pairs], form)
    for folder in folders:
        print(f"Tables and figures: {one_line(str(folder))}", file=sys.stdout if form == "table" else sys.stderr)


def _related(runs: Sequence[RunNumbers], store: Path) -> list[RunNumbers]:
    """Return the runs in a store that may share a table with `runs`, which are not among them. No others are read."""
    shown = {run_key(run.manifest) for run in runs}
    settings = {_table_key(run.manifest) for run in runs}
    return load_numbers(store, wanted=lambda other: _table_key(other) in settings and run_key(other) not in shown)


def _table_key(manifest: Manifest) -> str:
    """Return a key that is equal for runs that may share a table."""
    shared = setting(manifest) if manifest["part"] is None else suite_setting(manifest)
    return json.dumps(shared, sort_keys=True)


def _with_distinct_models(pairs: Sequence[tuple[Group, Group]]) -> list[tuple[Group, Group]]:
    """Return groups with the mark of their model in the name, where models of one label have different weights."""
    models = [group.runs[0].manifest for group, _ in pairs]
    marks: dict[str, set[str]] = {}
    for manifest in models:
        marks.setdefault(manifest["label"]["model"], set()).add(table_mark(manifest["identity"]["model"]))
    result = []
    for pair, manifest in zip(pairs, models, strict=True):
        if len(marks[manifest["label"]["model"]]) > 1:
            label, mark = manifest["label"]["model"], table_mark(manifest["identity"]["model"])
            first, second = (
                replace(
                    group,
                    name=group.name.replace(f", {label},", f", {label} {mark},", 1),
                    content={**group.content, "name": group.name.replace(f", {label},", f", {label} {mark},", 1)},
                )
                for group in pair
            )
            pair = first, second
        result.append(pair)
    return result


def _single(
    runs: Sequence[RunNumbers], related: Sequence[RunNumbers], metric: str | None, by: str
) -> list[tuple[Group, Group]]:
    """Return what is printed and what is written of the runs that stand alone."""
    pairs = []
    for group in groups([run for run in runs if run.manifest["part"] is None]):
        others = [run for run in related if setting(run.manifest) == setting(group[0].manifest)]
        baseline = [run for run in others if is_full_cache(run.manifest)]
        printed = _single_group([*group, *baseline], metric, by)
        alike = len(baseline) == len(others)
        pairs.append((printed, printed if alike else _single_group([*group, *others], metric, by)))
    return pairs


def _single_group(runs: Sequence[RunNumbers], metric: str | None, by: str) -> Group:
    shared, rows = setting(runs[0].manifest), table(runs, metric)
    mark = table_mark(shared)
    name = f"{_words(shared['benchmark'], shared)} (protocol {mark})"
    rows = sorted(rows, key=bytes_order) if by == "bytes" else rows
    several = len({row["hardware"] for row in rows}) > 1
    whole: list[Cells] = [cells(row, with_hardware=several) for row in rows]
    if by == "bytes":
        scores = [next(iter(row["scores"].values()), None) for row in rows]
        whole = with_front(whole, [row["held_mib"] for row in rows], scores)
    legend = (FRONT if by == "bytes" else "") + LEGEND
    content = {"name": name, "setting": shared, "rows": rows}
    folder = f"{shared['benchmark']}-{shared['model'][0]}-{mark}"
    return Group(name, folder, runs, content, [whole], lambda: markdown(whole), legend)


def _suites(
    runs: Sequence[RunNumbers], related: Sequence[RunNumbers], metric: str | None, by: str
) -> list[tuple[Group, Group]]:
    """Return what is printed and what is written of the runs of suites."""
    asked = {run_key(run.manifest): run for run in runs if run.manifest["part"] is not None}
    others = [run for run in related if run.manifest["part"] is not None]
    pairs = []
    earlier: list[str] = []
    for group in suite_groups([*asked.values(), *others]):
        plain = table_mark(suite_setting(group[0].manifest))
        mark = table_mark({"setting": plain, "table": earlier.count(plain)}) if plain in earlier else plain
        earlier.append(plain)
        keys = {row_key(run) for run in group if run_key(run.manifest) in asked}
        if keys:
            whole = suite_table(group, metric)
            if by == "bytes":
                whole["rows"].sort(key=bytes_order)
            keys |= {row_key(run) for run in group if is_full_cache(run.manifest)}
            printed = whole.copy()
            printed["rows"] = [row for row in whole["rows"] if row["key"] in keys]
            members = [run for run in group if row_key(run) in keys]
            pairs.append((_suite_group(members, printed, mark, by), _suite_group(group, whole, mark, by)))
    return pairs


def _suite_group(runs: Sequence[RunNumbers], content: SuiteTable, mark: str, by: str) -> Group:
    shared = suite_setting(runs[0].manifest)
    name = f"{_words(shared['suite'], shared)} (protocol {mark})"
    folder = f"{shared['suite']}-{shared['model'][0]}-{mark}"
    width = shutil.get_terminal_size((120, 24)).columns
    whole = tables(content)
    if by == "bytes":
        leads = [row["means"][content["lead"]]["score"] for row in content["rows"]]
        sizes = [row["held_mib"] for row in content["rows"]]
        whole = [with_front(whole[0], sizes, leads), *whole[1:]]
    legend = SUITE_LEGEND.format(lead=escaped(content["lead"]))
    return Group(
        name,
        folder,
        runs,
        {"name": name, "setting": shared, **content},
        whole,
        lambda: markdown(whole[0]) if by == "bytes" else terminal(content, width),
        (FRONT if by == "bytes" else "") + legend,
        content,
    )


def _words(benchmark: str, shared: Setting | SuiteSetting) -> str:
    """Return benchmark, model, dtype and device in words, and what people call the protocol."""
    protocol = shared["protocol"]
    words = [benchmark, str(shared["model"][0]), shared["dtype"], shared["device"]]
    if "protocol" in protocol:
        words.append(str(protocol["protocol"]))
    if "question" in protocol:
        words.append(f"question-{protocol['question']}")
    return one_line(", ".join(words))


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


def _write(group: Group, metric: str | None, out: Path, palette: str, figures: str) -> list[Path]:
    """Write the tables of the runs, and their figures. Return the paths of all files.

    The folder's name comes from stored text. It is a name, never a path: see `kvbench.store.schema.Name`.
    """
    folder = out / group.folder
    if folder.parent != out:
        raise ValueError(f"{group.folder!r}: not the name of a folder, so no report is written there")
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "table.md": group.markdown(),
        "table.json": json.dumps(group.content, indent=2) + "\n",
        "table.tex": group.latex(),
        "table.html": html_page(group.name, group.html()),
        "scores.csv": csv_text(cast(Sequence[Mapping[str, object]], group.scores())),
    }
    for name, text in texts.items():
        write_atomic(folder / name, text)
    files = [folder / name for name in texts]
    if figures != "none":
        words = group.name.partition(" (protocol ")[0].split(", ")
        heading, details = ", ".join(words[:2]), ", ".join(words[2:])
        limited = figures != "all"
        drawn = draw(Shown(group.runs, group.suite, heading, details, folder, metric, palette, limited))
        files += [file for png in drawn for file in (png, png.with_suffix(".pdf")) if file.exists()]
    return files

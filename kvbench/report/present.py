"""The report of runs: a table per group of comparable runs on the console, the same and figures in a folder."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from kvbench.common.files import write_atomic
from kvbench.common.text import one_line
from kvbench.report.figures.draw import draw
from kvbench.report.figures.shown import Shown
from kvbench.report.formats import Cells, csv_text, escaped, latex, latex_comment, markdown
from kvbench.report.runs import Setting, groups, is_full_cache, setting, table_mark
from kvbench.report.scores import Line, score_lines
from kvbench.report.suite import SuiteTable, suite_table
from kvbench.report.suite_groups import SuiteSetting, row_key, suite_groups, suite_setting
from kvbench.report.suite_text import tables, terminal
from kvbench.report.table import cells, table
from kvbench.store import Manifest, StoredRun, load_runs

_INTERVAL = """\
95% interval by Student's t{within}; n.s.: the interval holds 0 or is unknown. [1 sample], [no spread]: no interval, as
{where} has one sample only, or no difference varies."""
_LEGEND = (
    """\
Means over the samples that got an answer; oom counts those that ran out of memory, failed those whose output was not
finite. Δ full: mean difference to the full cache over common samples, with its """
    + _INTERVAL.format(within="", where="the run")
    + """
kept/head: measured tokens per KV head after compression (share of what was compressed). KV: their bytes (share of
full). Times are those of the batch that a row ran in: rows that share a prefill share its times.
"""
)
_SUITE_LEGEND = (
    """\
Datasets: 100 × the mean score; * not all published samples, or some ran out of memory or failed. Averages are of these
numbers, in a mean by category first; (k/N): only k of N datasets (macro averages: categories). Δ full: difference of
the {lead} to the full cache, in points, over common datasets and samples, with its """
    + _INTERVAL.format(within=" from the samples within datasets", where="a dataset")
    + """
kept/head: measured tokens per KV head after compression (share of what was compressed). KV: their bytes, as a share of
the full cache's.
"""
)


@dataclass(frozen=True)
class Group:
    """Comparable runs and all forms in which their table is shown."""

    name: str
    folder: str
    runs: Sequence[StoredRun]
    content: Mapping[str, object]
    tables: Sequence[Sequence[Cells]]
    console: Callable[[], str]
    legend: str
    suite: SuiteTable | None = None

    def scores(self) -> list[Line]:
        """Return the lines of scores.csv."""
        return score_lines(self.runs, self.folder.rpartition("-")[2])

    def markdown(self) -> str:
        """Return the whole of table.md."""
        return "\n\n".join([f"## {escaped(self.name)}", *map(markdown, self.tables), self.legend])


def present(
    runs: Sequence[StoredRun],
    out: Path | None,
    metric: str | None = None,
    store: Path | None = None,
    form: str = "table",
    palette: str = "safe",
) -> None:
    """Print a table per group of comparable runs, and write tables and figures to a folder of `out` per group.

    Files come first: nothing is lost when the reader of the output goes away. What is written covers also the
    comparable runs in the folder `store`, so that it grows with the store. Of these the full cache is printed, too, as
    the baseline, and in a suite what a printed row has of other datasets.
    """
    related = [] if store is None else _related(runs, store)
    pairs = [*_single(runs, related, metric), *_suites(runs, related, metric)]
    pairs = _with_distinct_models(pairs)
    folders: list[Path] = []
    try:
        if out is not None:
            folders += [_write(written, metric, out, palette) for _, written in pairs]
    finally:  # a full disk must not hide the tables
        _print([printed for printed, _ in pairs], form)
    for folder in folders:
        print(f"Tables and figures: {one_line(str(folder))}", file=sys.stdout if form == "table" else sys.stderr)


def _related(runs: Sequence[StoredRun], store: Path) -> list[StoredRun]:
    """Return the runs in a store that may share a table with `runs`, which are not among them. No others are read."""
    shown = {_key(run.manifest) for run in runs}
    settings = {_table_key(run.manifest) for run in runs}
    return load_runs(
        store, wanted=lambda other: _table_key(other) in settings and _key(other) not in shown, bulky=False
    )


def _table_key(manifest: Manifest) -> str:
    """Return a key that is equal for runs that may share a table."""
    shared = setting(manifest) if manifest["part"] is None else suite_setting(manifest)
    return json.dumps(shared, sort_keys=True)


def _key(manifest: Manifest) -> tuple[str, str]:
    """Return the key of a run, which is equal also where its path is written in two ways."""
    return manifest["label"]["benchmark"], manifest["hash"]


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


def _single(runs: Sequence[StoredRun], related: Sequence[StoredRun], metric: str | None) -> list[tuple[Group, Group]]:
    """Return what is printed and what is written of the runs that stand alone."""
    pairs = []
    for group in groups([run for run in runs if run.manifest["part"] is None]):
        others = [run for run in related if setting(run.manifest) == setting(group[0].manifest)]
        baseline = [run for run in others if is_full_cache(run.manifest)]
        printed = _single_group([*group, *baseline], metric)
        alike = len(baseline) == len(others)
        pairs.append((printed, printed if alike else _single_group([*group, *others], metric)))
    return pairs


def _single_group(runs: Sequence[StoredRun], metric: str | None) -> Group:
    shared, rows = setting(runs[0].manifest), table(runs, metric)
    mark = table_mark(shared)
    name = f"{_words(shared['benchmark'], shared)} (protocol {mark})"
    whole = [cells(row) for row in rows]
    content = {"name": name, "setting": shared, "rows": rows}
    folder = f"{shared['benchmark']}-{shared['model'][0]}-{mark}"
    return Group(name, folder, runs, content, [whole], lambda: markdown(whole), _LEGEND)


def _suites(runs: Sequence[StoredRun], related: Sequence[StoredRun], metric: str | None) -> list[tuple[Group, Group]]:
    """Return what is printed and what is written of the runs of suites."""
    asked = {_key(run.manifest): run for run in runs if run.manifest["part"] is not None}
    others = [run for run in related if run.manifest["part"] is not None]
    pairs = []
    earlier: list[str] = []
    for group in suite_groups([*asked.values(), *others]):
        plain = table_mark(suite_setting(group[0].manifest))
        mark = table_mark({"setting": plain, "table": earlier.count(plain)}) if plain in earlier else plain
        earlier.append(plain)
        keys = {row_key(run) for run in group if _key(run.manifest) in asked}
        if keys:
            whole = suite_table(group, metric)
            keys |= {row_key(run) for run in group if is_full_cache(run.manifest)}
            printed = whole.copy()
            printed["rows"] = [row for row in whole["rows"] if row["key"] in keys]
            members = [run for run in group if row_key(run) in keys]
            pairs.append((_suite_group(members, printed, mark), _suite_group(group, whole, mark)))
    return pairs


def _suite_group(runs: Sequence[StoredRun], content: SuiteTable, mark: str) -> Group:
    shared = suite_setting(runs[0].manifest)
    name = f"{_words(shared['suite'], shared)} (protocol {mark})"
    folder = f"{shared['suite']}-{shared['model'][0]}-{mark}"
    width = shutil.get_terminal_size((120, 24)).columns
    return Group(
        name,
        folder,
        runs,
        {"name": name, "setting": shared, **content},
        tables(content),
        lambda: terminal(content, width),
        _SUITE_LEGEND.format(lead=escaped(content["lead"])),
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
        for group in shown:
            print("\n\n".join([latex_comment(group.name), *map(latex, group.tables)]) + "\n")
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
    write_atomic(folder / "scores.csv", csv_text(cast(Sequence[Mapping[str, object]], group.scores())))
    words = group.name.partition(" (protocol ")[0].split(", ")
    draw(Shown(group.runs, group.suite, ", ".join(words[:2]), ", ".join(words[2:]), folder, metric, palette))
    return folder

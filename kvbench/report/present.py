"""Show runs: a table per group of comparable runs on the console, the same and figures in a folder."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvbench.common.files import write_atomic
from kvbench.report.curve import curve
from kvbench.report.formats import Cells, csv_text, latex, markdown
from kvbench.report.heatmap import has_grid, heatmap, heatmap_grid
from kvbench.report.runs import BASELINE, fingerprint, groups, part, setting
from kvbench.report.scores import score_lines
from kvbench.report.suite import is_baseline, row_key, suite_groups, suite_setting, suite_table
from kvbench.report.suite_text import tables, terminal
from kvbench.report.table import cells, table
from kvbench.store import StoredRun

_LEGEND = """\
Means over the samples that got an answer; oom counts those that ran out of memory. Δ full: mean difference to
the full cache over common samples, with its 95% bootstrap interval; n.s.: the interval holds 0 or is unknown.
kept/head: measured tokens per KV head after compression (share of what was compressed). KV: their bytes (share of
full). Times are those of the batch that a row ran in: rows that share a prefill share its times.
"""
_SUITE_LEGEND = """\
Datasets: 100 × the mean score; * not all published samples, or some ran out of memory. Averages are of these numbers,
in a mean by category first; (k/N): only k of N datasets (macro averages: categories). Δ full: difference of the {lead}
to the full cache, in points, over common datasets and samples, with its 95% bootstrap interval (samples drawn within
datasets); n.s.: the interval holds 0 or is unknown. kept/head: measured tokens per KV head after compression (share
of what was compressed). KV: their bytes, as a share of the full cache's.
"""


@dataclass(frozen=True)
class Group:
    """Comparable runs and all forms in which their table is shown."""

    name: str
    folder: str
    runs: Sequence[StoredRun]
    content: Mapping[str, Any]
    tables: Sequence[Sequence[Cells]]
    console: Callable[[], str]
    legend: str

    def scores(self) -> list[dict[str, Any]]:
        """The lines of scores.csv."""
        return score_lines(self.runs, self.folder.rpartition("-")[2])

    def markdown(self) -> str:
        """The whole of table.md."""
        return "\n\n".join([f"## {self.name}", *map(markdown, self.tables), self.legend])


def present(
    runs: Sequence[StoredRun],
    out: Path | None,
    metric: str | None = None,
    beside: Sequence[StoredRun] = (),
    form: str = "table",
) -> None:
    """Print a table per group of comparable runs, and write tables and figures to a folder of `out` per group.

    What is written covers also the comparable runs `beside`, so that it grows with the store; of these the full
    cache is printed, too, as the baseline, and in a suite what a printed row has of other datasets.
    """
    pairs = [*_single(runs, beside, metric), *_suites(runs, beside, metric)]
    _print([printed for printed, _ in pairs], form)
    note = sys.stdout if form == "table" else sys.stderr
    for _, written in pairs if out else []:
        assert out is not None
        print(f"Tables and figures: {_write(written, metric, out)}", file=note)


def _single(runs: Sequence[StoredRun], beside: Sequence[StoredRun], metric: str | None) -> list[tuple[Group, Group]]:
    """What is printed and what is written of the runs that stand alone."""
    pairs = []
    for group in groups([run for run in runs if not part(run)]):
        shown = {run.manifest["hash"] for run in group}
        related = [r for r in beside if setting(r) == setting(group[0]) and r.manifest["hash"] not in shown]
        baseline = [r for r in related if r.manifest["label"]["method"] == BASELINE]
        printed = _single_group([*group, *baseline], metric)
        alike = len(baseline) == len(related)
        pairs.append((printed, printed if alike else _single_group([*group, *related], metric)))
    return pairs


def _single_group(runs: Sequence[StoredRun], metric: str | None) -> Group:
    shared, rows = setting(runs[0]), table(runs, metric)
    mark = fingerprint(shared)
    name = f"{_words(shared['benchmark'], shared)} (protocol {mark})"
    whole = [cells(row) for row in rows]
    content = {"name": name, "setting": shared, "rows": rows}
    folder = f"{shared['benchmark']}-{shared['model'][0]}-{mark}"
    return Group(name, folder, runs, content, [whole], lambda: markdown(whole), _LEGEND)


def _suites(runs: Sequence[StoredRun], beside: Sequence[StoredRun], metric: str | None) -> list[tuple[Group, Group]]:
    """What is printed and what is written of the runs of suites."""
    asked = {_key(run): run for run in runs if part(run)}
    others = [run for run in beside if part(run) and _key(run) not in asked]
    pairs = []
    earlier: list[str] = []
    for group in suite_groups([*asked.values(), *others]):
        plain = fingerprint(suite_setting(group[0]))
        mark = fingerprint({"setting": plain, "table": earlier.count(plain)}) if plain in earlier else plain
        earlier.append(plain)
        keys = {row_key(run) for run in group if _key(run) in asked}
        if keys:
            whole = suite_table(group, metric)
            keys |= {row_key(run) for run in group if is_baseline(run)}
            printed = whole | {"rows": [row for row in whole["rows"] if row["key"] in keys]}
            members = [run for run in group if row_key(run) in keys]
            pairs.append((_suite_group(members, printed, mark), _suite_group(group, whole, mark)))
    return pairs


def _key(run: StoredRun) -> tuple[str, str]:
    """What a run is, also where its path is written in two ways."""
    return run.manifest["label"]["benchmark"], run.manifest["hash"]


def _suite_group(runs: Sequence[StoredRun], made: Mapping[str, Any], mark: str) -> Group:
    shared = suite_setting(runs[0])
    name = f"{_words(shared['suite'], shared)} (protocol {mark})"
    folder = f"{shared['suite']}-{shared['model'][0]}-{mark}"
    content = {"name": name, "setting": shared, **made}
    width = shutil.get_terminal_size((120, 24)).columns
    legend = _SUITE_LEGEND.format(lead=made["lead"])
    return Group(name, folder, runs, content, tables(made), lambda: terminal(made, width), legend)


def _words(benchmark: str, shared: Mapping[str, Any]) -> str:
    """Benchmark, model, dtype and device in words, and what people call the protocol."""
    protocol = shared["protocol"]
    words = [benchmark, shared["model"][0], shared["dtype"], shared["device"]]
    if "protocol" in protocol:
        words.append(protocol["protocol"])
    if "question" in protocol:
        words.append(f"question-{protocol['question']}")
    return ", ".join(words)


def _print(shown: Sequence[Group], form: str) -> None:
    if form == "csv":
        print(csv_text([line for group in shown for line in group.scores()]), end="")
    elif form == "json":
        print(json.dumps([group.content for group in shown], indent=2))
    elif form == "latex":
        for group in shown:
            print("\n\n".join([f"% {group.name}", *map(latex, group.tables)]) + "\n")
    else:
        for group in shown:
            print(f"## {group.name}\n\n{group.console()}\n")
        print("\n".join(dict.fromkeys(group.legend for group in shown)))


def _write(group: Group, metric: str | None, out: Path) -> Path:
    """Tables of the runs, a heatmap each where there is a grid and all in one overview, a suite's curve."""
    folder = out / group.folder
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "table.md", group.markdown())
    write_atomic(folder / "table.json", json.dumps(group.content, indent=2) + "\n")
    write_atomic(folder / "scores.csv", csv_text(group.scores()))
    if "suite" in group.content:
        words = group.name.partition(" (")[0].split(", ")
        curve(group.content, ", ".join(words[:2]), ", ".join(words[2:]), folder / "budgets.png")
        return folder
    drawable = [run for run in group.runs if has_grid(run)]
    for run in drawable:
        heatmap(run, folder / f"{run.path.name}.png", metric)
    if drawable:
        heatmap_grid(drawable, folder / "overview.png", metric)
    return folder

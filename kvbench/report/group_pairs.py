"""Sort runs into tables: for each table, the group of runs that is printed and the one that is written to a folder.

The second has the comparable runs of the store besides those asked for.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace

from kvbench.common.text import one_line
from kvbench.report.bytes_axis import bytes_order, with_front
from kvbench.report.formats import Cells, escaped, markdown
from kvbench.report.group import Group
from kvbench.report.runs import Setting, groups, is_full_cache, setting, table_mark
from kvbench.report.suite import SuiteTable, suite_table
from kvbench.report.suite_groups import SuiteSetting, row_key, suite_groups, suite_setting
from kvbench.report.suite_text import tables, terminal
from kvbench.report.table import cells, table
from kvbench.store import Manifest, RunNumbers

_INTERVAL = """\
95% interval: BCa bootstrap, 9,999 paired resamples of contexts{within}, wider for few samples. n.s. or grey:
the interval holds 0 or is unknown. [1 sample], [1 context], [no spread]: no interval, as {where} has one of them only,
or no difference varies. Bold: significantly better than every other row under the same budget (paired sign-flip tests,
all comparisons of a column corrected after Holm, 5%)."""
_LEGEND = (
    """\
Means over the samples that got an answer; oom counts those that ran out of memory, failed those whose output was not
finite. Δ full: mean difference to the full cache over common samples, with its
"""
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
the {lead} to the full cache, in points, over common datasets and samples, with its
"""
    + _INTERVAL.format(within=" within datasets", where="a dataset")
    + """
kept/head: measured tokens per KV head after compression (share of what was compressed). KV: their bytes (share of
full). TTFT, TPOT: those of the batch that a row ran in.
"""
)
_FRONT = """\
Rows are sorted by the bytes that stay resident. front: no row of fewer or as many bytes scores higher (by the scores
as they are, not a test).
"""


def group_pairs(
    runs: Sequence[RunNumbers], related: Sequence[RunNumbers], metric: str | None, by: str
) -> list[tuple[Group, Group]]:
    """Return the groups that are printed and written, a pair per table.

    Args:
        runs: those asked for. Of `related`, the full cache is printed, too.
        by: order of rows, "method" or "bytes".
    """
    return _with_distinct_models([*_single(runs, related, metric, by), *_suites(runs, related, metric, by)])


def table_key(manifest: Manifest) -> str:
    """Return a key that is equal for runs that may share a table."""
    shared = setting(manifest) if manifest["part"] is None else suite_setting(manifest)
    return json.dumps(shared, sort_keys=True)


def run_key(manifest: Manifest) -> tuple[str, str]:
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
    whole: list[Cells] = [cells(row) for row in rows]
    if by == "bytes":
        whole = with_front(whole, [next(iter(row["scores"].values()), None) for row in rows])
    legend = (_FRONT if by == "bytes" else "") + _LEGEND
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
        whole = [with_front(whole[0], leads), *whole[1:]]
    legend = _SUITE_LEGEND.format(lead=escaped(content["lead"]))
    return Group(
        name,
        folder,
        runs,
        {"name": name, "setting": shared, **content},
        whole,
        lambda: markdown(whole[0]) if by == "bytes" else terminal(content, width),
        (_FRONT if by == "bytes" else "") + legend,
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

"""The index of the page: tables of comparable runs, their rows, and the differences to the full cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvbench.common.text import one_line
from kvbench.report.difference import ColumnScores, Difference, differences
from kvbench.report.paired import Matrix
from kvbench.report.runs import budget_order, budget_words, groups, is_full_cache, name, order, setting, table_mark
from kvbench.report.suite_groups import place_of, row_key, suite_groups, suite_setting
from kvbench.report.view.reading import Facts, Head, rounded

_INTERVAL = "Mean difference to the full cache over common samples, in points, with its 95% interval; grey: holds 0"
_LONGEST = 2000  # lengths or depths of a grid


@dataclass(frozen=True)
class Table:
    """Comparable runs: columns by name, and rows, each with a run per column or None."""

    shared: Mapping[str, Any]
    mark: str
    is_suite: bool
    columns: Sequence[str]
    rows: Sequence[Sequence[Head | None]]

    def column(self, at: int) -> list[Head]:
        """Return the runs of a column in the order of the rows."""
        return [run for row in self.rows if (run := row[at]) is not None]

    def full(self, at: int) -> Head | None:
        """Return the full cache's run of a column."""
        return next((run for run in self.column(at) if is_full_cache(run.manifest)), None)


def arrange(heads: Sequence[Head]) -> list[Table]:
    """Sort runs into tables, in a fixed order; nothing stands in one table that may not be compared."""
    tables = []
    for group in groups([head for head in heads if head.manifest["part"] is None]):
        shared: Mapping[str, Any] = {**setting(group[0].manifest)}
        rows = [[head] for head in group]
        tables.append(Table(shared, table_mark(shared), False, [str(shared["benchmark"])], rows))
    earlier: list[str] = []
    for group in suite_groups([head for head in heads if head.manifest["part"] is not None]):
        shared = {**suite_setting(group[0].manifest)}
        mark = table_mark(shared)
        mark = table_mark({"setting": mark, "table": earlier.count(mark)}) if mark in earlier else mark
        earlier.append(table_mark(shared))
        tables.append(_suite(group, {"benchmark": shared["suite"], **shared}, mark))
    return sorted(tables, key=lambda table: (table.shared["benchmark"], str(table.shared["model"][0]), table.mark))


def _suite(group: Sequence[Head], shared: Mapping[str, Any], mark: str) -> Table:
    orders = {place_of(head.manifest)["name"]: place_of(head.manifest)["order"] for head in group}
    columns = sorted(orders, key=lambda column: (orders[column], column))
    by_row: dict[str, dict[str, Head]] = {}
    for head in sorted(group, key=order):
        by_row.setdefault(row_key(head), {})[place_of(head.manifest)["name"]] = head
    rows = [[row.get(column) for column in columns] for row in by_row.values()]
    return Table(shared, mark, True, columns, rows)


def index_of(table: Table, facts: Mapping[Head, tuple[Facts, str, int]]) -> dict[str, Any] | None:
    """Return a table as the page reads it, see assets/data.js; None if all of its runs are damaged.

    Args:
        facts: per run its facts, its block and its place in that. Heads are compared by identity.
    """
    kept = [row for row in table.rows if any(run is not None and run in facts for run in row)]
    if not kept:
        return None
    firsts = [next(run for run in row if run is not None and run in facts) for row in kept]
    runs: list[dict[str, Any]] = []
    columns = [_column(table, at, facts) for at in range(len(table.columns))]
    lead, of, averaged = _lead(table, firsts, columns)
    names = _names(firsts)
    compared = _differences(table, kept, averaged, facts)
    rows = [_row(row, lead, of, averaged, columns, facts, runs, names[i], compared[i]) for i, row in enumerate(kept)]
    bounds = [row["diff"][key] for row in rows if row["diff"] for key in ("low", "mean", "high")]
    known = [0.0, *(bound for bound in bounds if bound is not None)]
    model = str(table.shared["model"][0])
    details = _details(table.shared)
    return {
        "benchmark": table.shared["benchmark"],
        "model": model,
        "details": details,
        "name": one_line(f"{table.shared['benchmark']}, {model}, {details}"),
        "mark": table.mark,
        "setting": table.shared,
        "suite": table.is_suite,
        "lead": lead,
        "interval": _INTERVAL,
        "reach": [min(known), max(known)],
        "columns": columns,
        "rows": rows,
        "runs": runs,
    }


def _details(shared: Mapping[str, Any]) -> str:
    protocol = shared["protocol"]
    words = [shared["dtype"], shared["device"], *([protocol["protocol"]] if "protocol" in protocol else [])]
    words += [f"question-{protocol['question']}"] if "question" in protocol else []
    return one_line(", ".join(map(str, words)))


def _names(firsts: Sequence[Head]) -> list[str]:
    """Return the name of each row among those of the same method and budget."""
    alike: dict[tuple[str, str], list[Head]] = {}
    for head in firsts:
        label = head.manifest["label"]
        alike.setdefault((label["method"], label["budget"]), []).append(head)
    labels = [head.manifest["label"] for head in firsts]
    return [name(h, alike[label["method"], label["budget"]]) for h, label in zip(firsts, labels, strict=True)]


def _column(table: Table, at: int, facts: Mapping[Head, tuple[Facts, str, int]]) -> dict[str, Any]:
    runs = [run for run in table.column(at) if run in facts]
    if not runs:
        return {"name": table.columns[at], "category": "", "metric": "", "grid": None, "prompts": ""}
    manifest = runs[0].manifest
    place, cells = manifest["part"], sorted({cell for run in runs for cell in facts[run][0].cells})
    protocol = manifest["identity"]["protocol"]
    lengths = _axis(protocol.get("lengths"), [length for length, _ in cells])
    depths = _axis(protocol.get("depths"), [depth for _, depth in cells])
    fits = bool(cells) and max(len(lengths), len(depths)) <= _LONGEST
    benchmark = place["suite"] if place else manifest["label"]["benchmark"]
    return {
        "name": table.columns[at],
        "category": place["category"] if place else "",
        "metric": manifest["headline"],
        "grid": {"lengths": lengths, "depths": depths} if fits else None,
        "prompts": f"kvbench prompts model={manifest['label']['model']} benchmark={benchmark} show=N",
    }


def _axis(planned: object, seen: Sequence[int]) -> list[int]:
    """Return the values of an axis: those of the protocol, so that cells not run yet show, and those in the records."""
    values = planned if isinstance(planned, list) and len(planned) <= _LONGEST else []
    return sorted({*seen, *(value for value in values if type(value) is int)})


def _lead(table: Table, firsts: Sequence[Head], columns: Sequence[Mapping[str, Any]]) -> tuple[str, int, Sequence[int]]:
    """Return the average that is shown first, over how many columns it should be, and over which it is.

    As in reports: the most complete average of the suite, then that of most columns.
    """
    if not table.is_suite:
        return firsts[0].manifest["headline"], 1, [0]
    means: dict[str, dict[int, int]] = {}
    for at in range(len(columns)):
        for head in table.column(at)[:1]:
            for mean, of in place_of(head.manifest)["means"].items():
                means.setdefault(mean, {})[at] = of
    if not means:
        return "mean", len(columns), range(len(columns))
    lead = max(means, key=lambda mean: (len(means[mean]) / max(means[mean].values()), max(means[mean].values())))
    return lead, max(means[lead].values()), list(means[lead])


def _row(
    row: Sequence[Head | None],
    lead: str,
    of: int,
    averaged: Sequence[int],
    columns: Sequence[Mapping[str, Any]],
    facts: Mapping[Head, tuple[Facts, str, int]],
    runs: list[dict[str, Any]],
    title: str,
    difference: Difference | None,
) -> dict[str, Any]:
    present = [(at, run, *facts[run]) for at, run in enumerate(row) if run is not None and run in facts]
    cells: list[int | None] = [None] * len(columns)
    for at, run, own, block, slot in present:
        cells[at] = len(runs)
        runs.append(_run(run, own, block, slot, columns[at]["grid"]))
    own_runs = [runs[cell] for cell in cells if cell is not None]
    scores = [runs[cell]["score"] for at in averaged if (cell := cells[at]) is not None]
    known = [score for score in scores if score is not None]
    first, every = present[0][1], [own for _, _, own, _, _ in present]
    label = first.manifest["label"]
    is_full, n = is_full_cache(first.manifest), sum(own.n for own in every)
    sums = [sum(own.sums[i] for own in every) / n if n else None for i in range(4)]
    others = {key: rounded(100 * score, 2) for key, score in every[0].scores.items() if key != lead}
    return {
        "method": title,
        "label": label["method"],
        "budget": label["budget"],
        "order": list(budget_order(label["budget"])),
        "words": budget_words(label["budget"]),
        "short": _short_budget(label["budget"]),
        "full": is_full,
        "hashes": [run["hash"][:8] for run in own_runs],
        "score": round(float(np.mean(known)), 2) if known else None,
        "missing": f"({len(known)}/{of})" if len(known) < of and known else "",
        "diff": None if is_full else _difference(difference),
        "n": n,
        "oom": sum(own.oom for own in every),
        "failed": sum(own.failed for own in every),
        "of": sum(run["of"] for run in own_runs),
        "status": next((run["status"] for run in own_runs if run["status"] != "done"), "done"),
        "kept": rounded(sums[0], 1),
        "keptShare": rounded(sums[1], 4),
        "kvShare": rounded(sums[2], 4),
        "kvMiB": rounded(sums[3], 3),
        "ttft": _mean_time(every, "ttft_s"),
        "tpot": _mean_time(every, "tpot_s"),
        "others": others if len(row) == 1 else {},
        "cells": cells,
    }


def _run(head: Head, own: Facts, block: str, slot: int, grid: Mapping[str, Sequence[int]] | None) -> dict[str, Any]:
    manifest, place = head.manifest, head.manifest["part"]
    score = own.scores.get(manifest["headline"])
    return {
        "score": None if score is None else round(100 * score, 2),
        "n": own.n,
        "of": max(manifest["num_samples"], (place.get("samples") or 0) if place else 0),
        "status": own.status,
        "hash": manifest["hash"],
        "block": block,
        "slot": slot,
        "grid": _grid(own, grid) if grid and own.cells else None,
    }


def _grid(own: Facts, axes: Mapping[str, Sequence[int]]) -> list[float | None]:
    """Return the scores by depth, then by length: -1 without an answer, None where nothing ran."""
    result: list[float | None] = []
    for depth in axes["depths"]:
        for length in axes["lengths"]:
            value = own.cells.get((length, depth), -0.01) if (length, depth) in own.cells else None
            missing = (length, depth) in own.cells and value is None
            result.append(-1 if missing else None if value is None else round(100 * value, 1))
    return result


def _differences(
    table: Table,
    rows: Sequence[Sequence[Head | None]],
    averaged: Sequence[int],
    facts: Mapping[Head, tuple[Facts, str, int]],
) -> list[Difference | None]:
    """Return the difference of each row to the full cache, in points, over the columns of the leading average."""
    scored, base = [], len(rows)  # the full cache itself: all of its differences are 0
    for at in averaged:
        inside = [(i, facts[run][0]) for i, row in enumerate(rows) if (run := row[at]) is not None and run in facts]
        if inside and len(inside[0][1].deltas):
            values = 100 * np.stack([own.deltas for _, own in inside])
            values = np.concatenate([values, np.zeros((1, values.shape[1]))])
            ids = tuple(map(str, range(values.shape[1])))
            matrix = Matrix(ids, values, inside[0][1].clusters)
            scored.append(ColumnScores(table.columns[at], [*(i for i, _ in inside), base], matrix))
    average = {"lead": [[column.name for column in scored]]}
    return [row.get("lead") for row in differences(scored, average, base + 1, base)][:base]


def _difference(difference: Difference | None) -> dict[str, Any] | None:
    if difference is None:
        return None
    numbers = {key: rounded(difference[key], 2) for key in ("mean", "low", "high")}
    return {**numbers, "n": difference["n"], "reason": difference["reason"], "significant": difference["significant"]}


def _mean_time(every: Sequence[Facts], key: str) -> float | None:
    total, count = (sum(own.times[key][i] for own in every) for i in (0, 1))
    return float(f"{total / count:.4g}") if count else None


def _short_budget(budget: str) -> str:
    kind, value = budget_order(budget)
    return ("–", f"{100 * value:.3g}%", f"{100 * value:.3g}% bytes", f"{budget} tok.")[kind]

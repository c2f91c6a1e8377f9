"""The index of the page: tables of comparable runs with the numbers of the report, and needle grids."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from kvbench.common.text import one_line
from kvbench.report.difference import Difference
from kvbench.report.measured import count, four_digits, mean_score
from kvbench.report.runs import budget_order, budget_words, groups, is_full_cache, order, setting, table_mark
from kvbench.report.suite import suite_table
from kvbench.report.suite_groups import place_of, row_key, suite_groups, suite_setting
from kvbench.report.table import table
from kvbench.store import Manifest, RunNumbers

_INTERVAL = (
    "Mean difference to the full cache over common samples, in points, with its 95% interval; grey: may be chance"
)
_LONGEST = 2000  # lengths or depths of a grid

Places = Mapping[Path, tuple[str, int]]  # by run folder: its block of answers, and its place in that


@dataclass(frozen=True)
class Table:
    """Comparable runs: columns by name, and rows, each with a run by column."""

    shared: Mapping[str, Any]
    mark: str
    columns: Sequence[str]
    runs: Sequence[RunNumbers]
    rows: Sequence[Mapping[str, RunNumbers]]

    def column(self, name: str) -> list[RunNumbers]:
        """Return the runs of a column in the order of the rows."""
        return [row[name] for row in self.rows if name in row]


def arrange(runs: Sequence[RunNumbers]) -> list[Table]:
    """Sort runs into tables, in a fixed order; nothing stands in one table that may not be compared."""
    tables = []
    for group in groups([run for run in runs if run.manifest["part"] is None]):
        shared: Mapping[str, Any] = {**setting(group[0].manifest)}
        name = str(shared["benchmark"])
        tables.append(
            Table(shared, table_mark(shared), [name], group, [{name: run} for run in sorted(group, key=order)])
        )
    earlier: list[str] = []
    for group in suite_groups([run for run in runs if run.manifest["part"] is not None]):
        shared = {**suite_setting(group[0].manifest)}
        plain = table_mark(shared)
        mark = table_mark({"setting": plain, "table": earlier.count(plain)}) if plain in earlier else plain
        earlier.append(plain)
        tables.append(_suite(group, {"benchmark": shared["suite"], **shared}, mark))
    return sorted(tables, key=lambda each: (each.shared["benchmark"], str(each.shared["model"][0]), each.mark))


def _suite(group: Sequence[RunNumbers], shared: Mapping[str, Any], mark: str) -> Table:
    orders = {place_of(run.manifest)["name"]: place_of(run.manifest)["order"] for run in group}
    rows: dict[str, dict[str, RunNumbers]] = {}
    for run in sorted(group, key=order):
        rows.setdefault(row_key(run), {})[place_of(run.manifest)["name"]] = run
    full_first = sorted(rows.values(), key=lambda row: not is_full_cache(next(iter(row.values())).manifest))
    return Table(shared, mark, sorted(orders, key=lambda name: (orders[name], name)), group, full_first)


def index_of(arranged: Table, places: Places) -> dict[str, Any]:
    """Return a table as the page reads it, see assets/data.js. `places` is empty where the answers are left out."""
    is_suite = "suite" in arranged.shared
    columns = [_column(arranged.column(name), name) for name in arranged.columns]
    runs: list[dict[str, Any]] = []
    rows = []
    lead, reported = _suite_rows(arranged.runs) if is_suite else _single_rows(arranged.runs)
    for row, numbers in zip(arranged.rows, reported, strict=True):
        cells: list[int | None] = [None] * len(columns)
        for at, name in enumerate(arranged.columns):
            if name in row:
                cells[at] = len(runs)
                runs.append(_run(row[name], places, columns[at]["grid"]))
        own = [runs[cell] for cell in cells if cell is not None]
        rows.append({**_row(next(iter(row.values())), own), **numbers, "cells": cells})
    bounds = [row["diff"][key] for row in rows if row["diff"] for key in ("low", "mean", "high")]
    known = [0.0, *(bound for bound in bounds if bound is not None)]
    model, details = str(arranged.shared["model"][0]), _details(arranged.shared)
    return {
        "benchmark": arranged.shared["benchmark"],
        "model": model,
        "details": details,
        "name": one_line(f"{arranged.shared['benchmark']}, {model}, {details}"),
        "mark": arranged.mark,
        "setting": arranged.shared,
        "suite": is_suite,
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


# ---- the numbers of the report ----------------------------------------------------------------------------------


def _single_rows(runs: Sequence[RunNumbers]) -> tuple[str, list[dict[str, Any]]]:
    """Return the metric and the numbers of each row, in points."""
    lead = runs[0].manifest["headline"]
    rows = []
    for row in table(runs, lead):
        score = row["scores"].get(lead)
        others = {name: _points(value) for name, value in row["scores"].items() if name != lead}
        numbers: dict[str, Any] = {
            "score": _points(score),
            "missing": "",
            "diff": _difference(row["difference"], 100),
            "diffs": [],
        }
        rows.append({**numbers, **_measured(cast(Mapping[str, Any], row)), "best": row["best"], "others": others})
    return lead, rows


def _suite_rows(runs: Sequence[RunNumbers]) -> tuple[str, list[dict[str, Any]]]:
    """Return the leading average and the numbers of each row, in points."""
    result = suite_table(runs)
    lead = result["lead"]
    rows = []
    for row in result["rows"]:
        cell = row["means"][lead]
        averages = {**row["means"], **row["macros"]}
        numbers = {
            "score": cell["score"],
            "missing": f"({cell['n']}/{cell['of']})" if 0 < cell["n"] < cell["of"] else "",
            "diff": _difference(row["difference"], 1),
            "diffs": [_difference(row["differences"].get(column["name"]), 1) for column in result["columns"]],
            "best": f"means/{lead}" in row["best"],
            "others": {name: average["score"] for name, average in averages.items() if name != lead},
        }
        rows.append({**numbers, **_measured(cast(Mapping[str, Any], row))})
    return lead, rows


def _measured(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "method": row["method"],
        "mixed": row["mixed"],
        "hardware": row["hardware"],
        "n": row["n"],
        "oom": row["oom"],
        "failed": row["failed"],
        "of": row["num_samples"],
        "kept": _rounded(row["kept_tokens"], 1),
        "keptShare": _rounded(row["kept_share"], 4),
        "heldShare": _rounded(row["held_share"], 4),
        "heldMiB": _rounded(row["held_mib"], 3),
        "ttft": four_digits(row["ttft_s"]),
        "tpot": four_digits(row["tpot_s"]),
    }


def _difference(difference: Difference | None, scale: int) -> dict[str, Any] | None:
    if difference is None:
        return None
    mean, low, high = (
        None if value is None else _rounded(scale * value, 2)
        for value in (difference["mean"], difference["low"], difference["high"])
    )
    words = {"n": difference["n"], "reason": difference["reason"], "significant": difference["significant"]}
    return {"mean": mean, "low": low, "high": high, **words}


def _points(score: float | None) -> float | None:
    return None if score is None else round(100 * score, 2)


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, digits)


# ---- rows, columns and runs ---------------------------------------------------------------------------------------


def _row(first: RunNumbers, own: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return names and state of a row; `own` are its runs."""
    label = first.manifest["label"]
    kind, value = budget_order(label["budget"])
    short = ("–", f"{100 * value:.3g}%", f"{100 * value:.3g}% bytes", f"{label['budget']} tok.")[kind]
    return {
        "label": label["method"],
        "budget": label["budget"],
        "order": [kind, value],
        "words": budget_words(label["budget"]),
        "short": short,
        "full": is_full_cache(first.manifest),
        "hashes": [run["hash"][:8] for run in own],
        "status": next((run["status"] for run in own if run["status"] != "done"), "done"),
    }


def _column(runs: Sequence[RunNumbers], name: str) -> dict[str, Any]:
    manifest = runs[0].manifest
    place, label = manifest["part"], manifest["label"]
    return {
        "name": name,
        "category": place["category"] if place else "",
        "metric": manifest["headline"],
        "grid": _axes(runs),
        "prompts": f"kvbench prompts model={label['model']} {_benchmark(manifest)} show=",
    }


def _axes(runs: Sequence[RunNumbers]) -> dict[str, list[int]] | None:
    """Return the lengths and depths of a grid: those planned, so that cells not run yet show, and those recorded.

    None where no run has them, or more than can be drawn.
    """
    axes = {}
    for key, axis in (("length", "lengths"), ("depth", "depths")):
        planned = runs[0].manifest["identity"]["protocol"].get(axis)
        values = [value for value in planned if type(value) is int] if isinstance(planned, list) else []
        seen = [getattr(run.columns, key) for run in runs if has_grid(run)]
        axes[axis] = sorted({*values[:_LONGEST], *(int(value) for each in seen for value in np.unique(each))})
        if not seen or len(axes[axis]) > _LONGEST:
            return None
    return axes


def _benchmark(manifest: Manifest) -> str:
    """Return the overrides that name the benchmark of a run: a suite has its length or "-e" at the end of its name."""
    place, length = manifest["part"], manifest["identity"]["protocol"].get("length")
    if place is None:
        return f"benchmark={manifest['label']['benchmark']}"
    if place["name"].endswith("_e"):
        return f"benchmark={place['suite'].removesuffix('-e')} 'benchmark.datasets=[{place['name']}]'"
    return f"benchmark={place['suite'].removesuffix(f'-{length}')}"


def has_grid(run: RunNumbers) -> bool:
    """Return True if all samples carry a length and a depth, in whole numbers."""
    length, depth = run.columns.length, run.columns.depth
    return bool(len(length)) and all(
        bool((np.isfinite(each) & (each == each.round())).all()) for each in (length, depth)
    )


def _run(run: RunNumbers, places: Places, axes: Mapping[str, Sequence[int]] | None) -> dict[str, Any]:
    manifest, place = run.manifest, run.manifest["part"]
    block, slot = places.get(run.path, ("", 0))
    return {
        "score": _points(mean_score(run, manifest["headline"])),
        "n": count([run], "ok"),
        "of": max(manifest["num_samples"], (place.get("samples") or 0) if place else 0),
        "status": run.status.get("status"),
        "hash": manifest["hash"],
        "block": block,
        "slot": slot,
        "grid": _grid(run, axes) if axes and has_grid(run) else None,
    }


def _grid(run: RunNumbers, axes: Mapping[str, Sequence[int]]) -> list[float | None]:
    """Return the mean scores by depth, then by length: -1 without an answer, None where nothing ran."""
    columns = run.columns
    scores = columns.scores.get(run.manifest["headline"], np.full(len(columns.ids), np.nan))
    values: dict[tuple[float, float], list[float]] = {}
    for length, depth, score in zip(columns.length.tolist(), columns.depth.tolist(), scores.tolist(), strict=True):
        values.setdefault((length, depth), []).append(score)
    cells: dict[tuple[float, float], float] = {}
    for cell, found_scores in values.items():
        known = [score for score in found_scores if not math.isnan(score)]
        cells[cell] = round(100 * sum(known) / len(known), 1) if known else -1
    return [cells.get((length, depth)) for depth in axes["depths"] for length in axes["lengths"]]

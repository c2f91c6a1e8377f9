"""One table for the runs of a suite: methods and budgets against datasets, with the averages that papers print.

A dataset's score is 100 times the mean of its headline score, rounded to two decimals; averages are taken of the
rounded scores. Only runs of one suite, model, dtype, device and protocol meet in a table, only one data and one
scoring in a column, and a metric or switch that two columns share is the same in both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

import numpy as np

from kvbench.report.best import best_rows
from kvbench.report.difference import Average, ColumnScores, Difference, differences
from kvbench.report.measured import count, hardware, mean_of, mean_score, mean_share, mebibytes, score_names, time_of
from kvbench.report.paired import Matrix, matrix
from kvbench.report.runs import check_metric, is_full_cache, names, order
from kvbench.report.suite_groups import column_setting, place_of, row_key
from kvbench.store import RunNumbers, numbers_of
from kvbench.store.environment import is_mixed
from kvbench.store.numbers import ReadRun

BUCKETS = ("0-4k", "4-8k", "8k+")  # of LongBench-E, by the `length` field of a sample


class Column(TypedDict):
    """A dataset: its data and scoring, its category, the averages it enters, and the score that is shown."""

    name: str
    dataset: object
    scoring: dict[str, object]
    category: str
    means: dict[str, int]
    macros: dict[str, int]
    metric: str


class DatasetCell(TypedDict):
    """The score of a row on a dataset, and how many samples it is of."""

    score: float | None
    n: int
    oom: int
    failed: int
    num_samples: int


class MeanCell(TypedDict):
    """A flat mean over `n` datasets of the `of` that there should be."""

    score: float | None
    n: int
    of: int


class MacroCell(TypedDict):
    """The mean over the means of `n` of `of` categories."""

    score: float | None
    datasets: int
    categories: dict[str, MeanCell]
    n: int
    of: int
    complete: bool


class SuiteRow(TypedDict):
    """A method under a budget: its datasets, averages, differences to the full cache, and what was measured.

    Attributes:
        difference: of the leading average.
        differences: by dataset, and by average as "means/avg-16", "macros/macro", "categories/macro/code".
        best: datasets and averages in which the row is significantly better than all other methods under its budget.
        held_mib, held_share: what the cache holds in MiB, keys and values and what a store or a decode policy must know
            of each token; share of the full cache's keys and values.
        ttft_s, tpot_s, hardware, mixed: as in `kvbench.report.table.Row`, over all datasets.
    """

    key: str
    method: str
    budget: str
    is_full_cache: bool
    datasets: dict[str, DatasetCell]
    means: dict[str, MeanCell]
    macros: dict[str, MacroCell]
    difference: Difference | None
    differences: dict[str, Difference]
    best: list[str]
    buckets: dict[str, dict[str, float | None]]
    n: int
    oom: int
    failed: int
    num_samples: int
    kept_tokens: float | None
    kept_share: float | None
    held_mib: float | None
    held_share: float | None
    ttft_s: float | None
    tpot_s: float | None
    hardware: str | None
    mixed: bool


class SuiteTable(TypedDict):
    """The table of a suite. `lead` names the average that differences are about."""

    suite: str
    lead: str
    columns: list[Column]
    rows: list[SuiteRow]


def suite_table(read: Sequence[RunNumbers | ReadRun], metric: str | None = None) -> SuiteTable:
    """Return the table of one group of `suite_groups`: None where nothing was measured, the full cache first.

    The leading average is the most complete one, then that of most columns. Differences are in points, over the columns
    and samples that a row shares with the full cache. Raises ValueError for a metric that no run holds.
    """
    runs = list(map(numbers_of, read))
    if metric is not None:
        check_metric(runs, score_names(runs), metric)
    columns = _columns(runs, metric)
    means = _averages(columns, "means") or {"mean": (len(columns), [column["name"] for column in columns])}
    lead = max(means, key=lambda key: (len(means[key][1]) / means[key][0], means[key][0]))
    rows = _by_row(runs)
    firsts = [next(iter(row.values())) for row in rows]
    metrics = {column["name"]: column["metric"] for column in columns}
    lines: list[SuiteRow] = []
    for row, run, name in zip(rows, firsts, names(firsts), strict=True):
        datasets = {key: _dataset(row[key], metrics[key]) for key in metrics if key in row}
        scores = {key: value["score"] for key, value in datasets.items() if value["score"] is not None}
        buckets = {key: _buckets(row[key], metrics[key]) for key in datasets}
        members = list(row.values())
        lines.append(
            {
                "key": row_key(run),
                "method": name,
                "budget": run.manifest["label"]["budget"],
                "is_full_cache": is_full_cache(run.manifest),
                "datasets": datasets,
                "means": {key: _mean(scores, inside, of) for key, (of, inside) in means.items()},
                "macros": {key: _macro(scores, columns, key, of) for key, of in _macros(columns).items()},
                "difference": None,
                "differences": {},
                "best": [],
                "buckets": {key: scores_of for key, scores_of in buckets.items() if scores_of},
                "n": count(members, "ok"),
                "oom": count(members, "oom"),
                "failed": count(members, "failed"),
                "num_samples": sum(map(_published, members)),
                "kept_tokens": mean_of(members, "kept_mean"),
                "kept_share": mean_share(members, "kept_mean", "span"),
                "held_mib": mebibytes(members),
                "held_share": mean_share(members, "held_bytes", "kv_bytes_full"),
                "ttft_s": time_of(members, "ttft_s"),
                "tpot_s": time_of(members, "tpot_s"),
                "hardware": hardware(members),
                "mixed": is_mixed(run.manifest for run in members),
            }
        )
    result: SuiteTable = {
        "suite": place_of(runs[0].manifest)["suite"], "lead": lead, "columns": columns, "rows": lines
    }  # fmt: skip
    _compare(result, rows, {key: inside for key, (_, inside) in means.items()})
    return result


def _compare(table: SuiteTable, runs: Sequence[Mapping[str, RunNumbers]], means: Mapping[str, list[str]]) -> None:
    """Fill in the differences of the rows to the full cache, and where they are best."""
    rows = table["rows"]
    scored = []
    for column in table["columns"]:
        name = column["name"]
        inside = [at for at, row in enumerate(runs) if name in row]
        scores = matrix([runs[at][name] for at in inside], column["metric"])
        scored.append(ColumnScores(name, inside, Matrix(scores.ids, 100 * scores.scores, scores.clusters), 100.0))
    averages: dict[str, Average] = {f"means/{key}": [inside] for key, inside in means.items()}
    shown = {f"means/{key}": [row["means"][key]["score"] for row in rows] for key in means}
    for macro in rows[0]["macros"]:
        names: dict[str, list[str]] = {}
        for column in table["columns"]:
            if macro in column["macros"]:
                names.setdefault(column["category"], []).append(column["name"])
        averages[f"macros/{macro}"] = list(names.values())
        shown[f"macros/{macro}"] = [row["macros"][macro]["score"] for row in rows]
        for category, inside_category in names.items():
            averages[f"categories/{macro}/{category}"] = [inside_category]
            shown[f"categories/{macro}/{category}"] = [
                row["macros"][macro]["categories"][category]["score"] for row in rows
            ]
    for name in (column["name"] for column in table["columns"]):
        shown[name] = [row["datasets"][name]["score"] if name in row["datasets"] else None for row in rows]
    baseline = next((at for at, row in enumerate(rows) if row["is_full_cache"]), None)
    if baseline is not None:
        for row, own in zip(rows, differences(scored, averages, len(rows), baseline), strict=True):
            row["differences"] = own
            row["difference"] = own.get(f"means/{table['lead']}")
    by_budget: dict[str, list[int]] = {}
    for at, row in enumerate(rows):
        if not row["is_full_cache"]:
            by_budget.setdefault(row["budget"], []).append(at)
    methods = [next(iter(row.values())).manifest["identity"]["method"] for row in runs]
    for key, best in best_rows(scored, averages, shown, list(by_budget.values()), methods).items():
        for at in sorted(best):
            rows[at]["best"].append(key)


def _columns(runs: Sequence[RunNumbers], metric: str | None) -> list[Column]:
    """Return the datasets in their order: place in the suite, data, scoring, and the score that is shown."""
    firsts = {place_of(run.manifest)["name"]: run.manifest for run in reversed(runs)}
    columns: list[Column] = []
    for _, name in sorted((place_of(manifest)["order"], name) for name, manifest in firsts.items()):
        manifest = firsts[name]
        place, shared = place_of(manifest), column_setting(manifest)
        columns.append(
            {
                "name": name,
                "dataset": shared["dataset"],
                "scoring": shared["scoring"],
                "category": place["category"],
                "means": place["means"],
                "macros": place["macros"],
                "metric": metric or manifest["headline"],
            }
        )
    return columns


def _by_row(runs: Sequence[RunNumbers]) -> list[dict[str, RunNumbers]]:
    """Return column → run for each row; rows sorted, the full cache first."""
    rows: dict[str, dict[str, RunNumbers]] = {}
    for run in sorted(runs, key=order):
        rows.setdefault(row_key(run), {})[place_of(run.manifest)["name"]] = run
    return sorted(rows.values(), key=lambda row: not is_full_cache(next(iter(row.values())).manifest))


def _averages(columns: Sequence[Column], kind: Literal["means", "macros"]) -> dict[str, tuple[int, list[str]]]:
    """Return averages with the number of members each has when complete, and its columns in this table."""
    names = dict.fromkeys(key for column in columns for key in column[kind])
    members = {key: [column for column in columns if key in column[kind]] for key in names}
    return {
        key: (max(column[kind][key] for column in inside), [column["name"] for column in inside])
        for key, inside in members.items()
    }


def _dataset(run: RunNumbers, metric: str) -> DatasetCell:
    return {
        "score": _score(mean_score(run, metric)),
        "n": count([run], "ok"),
        "oom": count([run], "oom"),
        "failed": count([run], "failed"),
        "num_samples": _published(run),
    }


def _published(run: RunNumbers) -> int:
    """Return how many samples there should be: all published ones, even where only a part was asked for."""
    return max(run.manifest["num_samples"], place_of(run.manifest).get("samples") or 0)


def _score(mean: float | None) -> float | None:
    return None if mean is None else round(100 * mean, 2)


def _mean(scores: Mapping[str, float], names: Sequence[str], of: int) -> MeanCell:
    """Return the flat mean of a row: over how many datasets, and of how many there should be."""
    values = [scores[key] for key in names if key in scores]
    return {"score": flat_mean(values), "n": len(values), "of": of}


def flat_mean(scores: Sequence[float]) -> float | None:
    """Return the mean of rounded dataset scores, to two decimals; None of nothing."""
    return round(float(np.mean(scores)), 2) if scores else None


def _macros(columns: Sequence[Column]) -> dict[str, int]:
    return {key: of for key, (of, _) in _averages(columns, "macros").items()}


def _macro(scores: Mapping[str, float], columns: Sequence[Column], macro: str, of: int) -> MacroCell:
    """Return the means of the categories, and the mean of these.

    How many datasets a category should have is not known. So the average is `complete` if all categories are there
    and the smallest flat mean that holds all of its datasets is complete in this row, too.
    """
    members = [column for column in columns if macro in column["macros"]]
    inside_of: dict[str, list[str]] = {}
    for column in members:
        inside_of.setdefault(column["category"], []).append(column["name"])
    categories = {key: _mean(scores, inside, len(inside)) for key, inside in inside_of.items()}
    present = [[scores[key] for key in inside if key in scores] for inside in inside_of.values()]
    middle = [float(np.mean(values)) for values in present if values]
    flat = {key: size for key, size in members[0]["means"].items() if all(key in column["means"] for column in members)}
    smallest = min(flat, key=flat.__getitem__, default=None)
    whole = all(category["n"] == category["of"] for category in categories.values())
    if smallest is not None:
        whole = sum(smallest in column["means"] and column["name"] in scores for column in columns) == flat[smallest]
    return {
        "score": flat_mean(middle),
        "datasets": sum(category["n"] for category in categories.values()),
        "categories": categories,
        "n": len(middle),
        "of": of,
        "complete": whole and len(middle) == of,
    }


def _buckets(run: RunNumbers, metric: str) -> dict[str, float | None]:
    """Return scores by length bucket, None for an empty one; {} where the samples carry none."""
    scores = run.columns.scores.get(metric, np.full(len(run.columns.ids), np.nan))
    buckets = np.array(run.columns.bucket)
    answered = run.columns.state == 0
    if not (buckets[answered] != "").any():
        return {}
    values = {key: scores[answered & (buckets == key) & ~np.isnan(scores)] for key in BUCKETS}
    return {key: _score(float(inside.mean()) if len(inside) else None) for key, inside in values.items()}

"""One table for the runs of a suite: methods and budgets against datasets, with the averages that papers print.

A dataset's score is 100 times the mean of its headline score, rounded to two decimals; averages are taken of the
rounded scores. Only runs of one suite, model, dtype, device and protocol meet in a table, only one data and one
scoring in a column, and a metric or switch that two columns share is the same in both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

import numpy as np

from kvbench.report.difference import Difference, deltas, stratified_difference
from kvbench.report.runs import Run, answered, count, is_full_cache, order, score_names
from kvbench.report.runs import name as name_of
from kvbench.report.suite_groups import column_setting, place_of, row_key
from kvbench.store import AnsweredRecord

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
    """A method under a budget: its datasets, averages, difference to the full cache, and what was kept."""

    key: str
    method: str
    budget: str
    is_full_cache: bool
    datasets: dict[str, DatasetCell]
    means: dict[str, MeanCell]
    macros: dict[str, MacroCell]
    difference: Difference | None
    buckets: dict[str, dict[str, float | None]]
    n: int
    oom: int
    failed: int
    num_samples: int
    kept_tokens: float | None
    kept_share: float | None
    kv_share: float | None


class SuiteTable(TypedDict):
    """The table of a suite. `lead` names the average that differences are about."""

    suite: str
    lead: str
    columns: list[Column]
    rows: list[SuiteRow]


def suite_table(runs: Sequence[Run], metric: str | None = None) -> SuiteTable:
    """Return the table of one group of `suite_groups`: None where nothing was measured, the full cache first.

    The leading average is the most complete one, then that of most columns. Differences are in points, over the columns
    and samples that a row shares with the full cache. Raises ValueError for a metric that no run holds.
    """
    if metric is not None and metric not in score_names(runs):
        raise ValueError(f"--metric {metric}: these runs hold {', '.join(score_names(runs))}")
    columns = _columns(runs, metric)
    means = _averages(columns, "means") or {"mean": (len(columns), [column["name"] for column in columns])}
    lead = max(means, key=lambda key: (len(means[key][1]) / means[key][0], means[key][0]))
    rows = _by_row(runs)
    firsts = [next(iter(row.values())) for row in rows]
    baseline = next((row for row, run in zip(rows, firsts, strict=True) if is_full_cache(run.manifest)), None)
    metrics = {column["name"]: column["metric"] for column in columns}
    lines: list[SuiteRow] = []
    for row, run in zip(rows, firsts, strict=True):
        datasets = {key: _dataset(row[key], metrics[key]) for key in metrics if key in row}
        scores = {key: value["score"] for key, value in datasets.items() if value["score"] is not None}
        difference = None
        if baseline is not None and baseline is not row:
            common = [key for key in means[lead][1] if key in row and key in baseline]
            difference = stratified_difference([100 * deltas(row[key], baseline[key], metrics[key]) for key in common])
        buckets = {key: _buckets(row[key], metrics[key]) for key in datasets}
        members = list(row.values())
        samples = [sample for member in members for sample in answered(member)]
        lines.append(
            {
                "key": row_key(run),
                "method": name_of(run, firsts),
                "budget": run.manifest["label"]["budget"],
                "is_full_cache": is_full_cache(run.manifest),
                "datasets": datasets,
                "means": {key: _mean(scores, names, of) for key, (of, names) in means.items()},
                "macros": {key: _macro(scores, columns, key, of) for key, of in _macros(columns).items()},
                "difference": difference,
                "buckets": {key: scores_of for key, scores_of in buckets.items() if scores_of},
                "n": len(samples),
                "oom": count(members, "oom"),
                "failed": count(members, "failed"),
                "num_samples": sum(map(_published, members)),
                "kept_tokens": _average([sample["kept_mean"] for sample in samples]),
                "kept_share": _average([sample["kept_mean"] / sample["span"] for sample in samples]),
                "kv_share": _average([sample["kv_bytes"] / sample["kv_bytes_full"] for sample in samples]),
            }
        )
    return {"suite": place_of(runs[0].manifest)["suite"], "lead": lead, "columns": columns, "rows": lines}


def _columns(runs: Sequence[Run], metric: str | None) -> list[Column]:
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


def _by_row(runs: Sequence[Run]) -> list[dict[str, Run]]:
    """Return column → run for each row; rows sorted, the full cache first."""
    rows: dict[str, dict[str, Run]] = {}
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


def _dataset(run: Run, metric: str) -> DatasetCell:
    return {
        "score": _score(answered(run), metric),
        "n": len(answered(run)),
        "oom": count([run], "oom"),
        "failed": count([run], "failed"),
        "num_samples": _published(run),
    }


def _published(run: Run) -> int:
    """Return how many samples there should be: all published ones, even where only a part was asked for."""
    return max(run.manifest["num_samples"], place_of(run.manifest).get("samples") or 0)


def _score(samples: Sequence[AnsweredRecord], metric: str) -> float | None:
    values = [sample["scores"][metric] for sample in samples if metric in sample["scores"]]
    return round(100 * float(np.mean(values)), 2) if values else None


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
    names: dict[str, list[str]] = {}
    for column in members:
        names.setdefault(column["category"], []).append(column["name"])
    categories = {key: _mean(scores, inside, len(inside)) for key, inside in names.items()}
    present = [[scores[key] for key in inside if key in scores] for inside in names.values()]
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


def _buckets(run: Run, metric: str) -> dict[str, float | None]:
    """Return scores by length bucket, None for an empty one; {} where the samples carry none."""
    samples = [sample for sample in answered(run) if "bucket" in sample["meta"]]
    if not samples:
        return {}
    return {key: _score([s for s in samples if s["meta"]["bucket"] == key], metric) for key in BUCKETS}


def _average(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None

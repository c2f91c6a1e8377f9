"""One table for the runs of a suite: methods and budgets against datasets, with the averages that papers print.

A dataset's score is 100 times the mean of its headline score, rounded to two decimals; averages are taken of the
rounded scores. Only runs of one suite, model, dtype, device and protocol meet in a table, only one data and one
scoring in a column, and a metric or switch that two columns share is the same in both.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypedDict

import numpy as np

from kvbench.report.difference import deltas, stratified_difference
from kvbench.report.runs import AnyRun, Run, answered, count, is_full_cache, name, order, score_names, setting
from kvbench.store import AnsweredRecord, Manifest, SuitePlace

BUCKETS = ("0-4k", "4-8k", "8k+")  # of LongBench-E, by the `length` field of a sample


class SuiteSetting(TypedDict):
    """What the runs in one table share."""

    suite: str
    model: list[object]  # label, identity
    dtype: str
    device: str
    protocol: dict[str, object]


Averages = Mapping[str, tuple[int, Sequence[str]]]  # name → how many members it has when complete, its columns here


def suite_setting(manifest: Manifest) -> SuiteSetting:
    """Return what two runs in one table must share; data and scoring are a column's own."""
    shared = setting(manifest)
    return {
        "suite": place_of(manifest)["suite"],
        "model": shared["model"],
        "dtype": shared["dtype"],
        "device": shared["device"],
        "protocol": {key: value for key, value in shared["protocol"].items() if key != "dataset"},
    }


def suite_groups(runs: Iterable[AnyRun]) -> list[list[AnyRun]]:
    """Runs sorted into tables. Where a column has several data or scorings, that of most runs is in the first table."""
    by_setting: dict[str, dict[str, list[AnyRun]]] = {}
    for run in runs:
        columns = by_setting.setdefault(json.dumps(suite_setting(run.manifest), sort_keys=True), {})
        columns.setdefault(json.dumps(_column_setting(run), sort_keys=True), []).append(run)
    groups: list[list[AnyRun]] = []
    for key in sorted(by_setting):
        tables: list[list[AnyRun]] = []
        for _, same in sorted(by_setting[key].items(), key=lambda item: (-len(item[1]), item[0])):
            fitting = next((table for table in tables if _fits(same[0], table)), None)
            if fitting is None:
                tables.append(list(same))
            else:
                fitting += same
        groups += tables
    return [
        sorted(group, key=lambda run: (order(run)[:3], _part(run)["order"], _part(run)["name"])) for group in groups
    ]


def row_key(run: Run) -> str:
    """Equal for the runs of one row: the same method with the same dials, budget, seed and backend."""
    identity = run.manifest["identity"]
    return json.dumps([identity.get(key) for key in ("method", "budget", "seed", "backend")], sort_keys=True)


def place_of(manifest: Manifest) -> SuitePlace:
    """Return the place of a run in its suite; there must be one."""
    place = manifest["part"]
    assert place is not None, "a run of a suite"
    return place


def _part(run: Run) -> SuitePlace:
    return place_of(run.manifest)


def _column_setting(run: Run) -> dict[str, Any]:
    shared = setting(run.manifest)
    dataset = shared["protocol"].get("dataset")
    return {"name": _part(run)["name"], "dataset": dataset, "scoring": shared["scoring"]}


def _fits(run: Run, table: Sequence[Run]) -> bool:
    """Whether a run's column may stand in a table: another name than those there, and no scoring that contradicts."""
    mine = _column_setting(run)
    ours = _leaves(mine["scoring"])
    for other in map(_column_setting, table):
        theirs = _leaves(other["scoring"])
        if other["name"] == mine["name"] or any(ours[key] != theirs[key] for key in ours.keys() & theirs.keys()):
            return False
    return True


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {path: value} if path else {}
    return {leaf: at for key in value for leaf, at in _leaves(value[key], f"{path}/{key}").items()}


def suite_table(runs: Sequence[Run], metric: str | None = None) -> dict[str, Any]:
    """The table of one group of `suite_groups`: JSON-able, None where nothing was measured, the full cache first.

    `lead` names the average that `difference` is about: the most complete one, then that of most columns.
    Differences are in points, over the columns and samples that a row shares with the full cache.
    Raises ValueError for a metric that no run holds.
    """
    if metric is not None and metric not in score_names(runs):
        raise ValueError(f"--metric {metric}: these runs hold {', '.join(score_names(runs))}")
    columns = _columns(runs, metric)
    means = _averages(columns, "means") or {"mean": (len(columns), [column["name"] for column in columns])}
    lead = max(means, key=lambda one: (len(means[one][1]) / means[one][0], means[one][0]))
    rows = _by_row(runs)
    firsts = [next(iter(row.values())) for row in rows]
    baseline = next((row for row, run in zip(rows, firsts, strict=True) if is_full_cache(run.manifest)), None)
    metrics = {column["name"]: column["metric"] for column in columns}
    lines = []
    for row, run in zip(rows, firsts, strict=True):
        datasets = {key: _dataset(row[key], metrics[key]) for key in metrics if key in row}
        scores = {key: value["score"] for key, value in datasets.items() if value["score"] is not None}
        difference = None
        if baseline is not None and baseline is not row:
            common = [key for key in means[lead][1] if key in row and key in baseline]
            difference = stratified_difference([100 * deltas(row[key], baseline[key], metrics[key]) for key in common])
        lines.append(
            {
                "key": row_key(run),
                "method": name(run, firsts),
                "budget": run.manifest["label"]["budget"],
                "datasets": datasets,
                "means": {key: _mean(scores, names, of) for key, (of, names) in means.items()},
                "macros": {key: _macro(scores, columns, key, of) for key, of in _macros(columns).items()},
                "difference": difference,
                "buckets": {key: found for key in datasets if (found := _buckets(row[key], metrics[key]))},
                **_amounts(list(row.values())),
            }
        )
    return {"suite": _part(runs[0])["suite"], "lead": lead, "columns": columns, "rows": lines}


def _columns(runs: Sequence[Run], metric: str | None) -> list[dict[str, Any]]:
    """The datasets in their order: place in the suite, data, scoring, and the score that is shown."""
    firsts = {_part(run)["name"]: run for run in reversed(runs)}
    columns = []
    for run in sorted(firsts.values(), key=lambda run: (_part(run)["order"], _part(run)["name"])):
        place = _part(run)
        averages = {"category": place["category"], "means": place["means"], "macros": place["macros"]}
        columns.append({**_column_setting(run), **averages, "metric": metric or run.manifest["headline"]})
    return columns


def _by_row(runs: Sequence[Run]) -> list[dict[str, Run]]:
    """Column → run for each row; rows sorted, the full cache first."""
    rows: dict[str, dict[str, Run]] = {}
    for run in sorted(runs, key=order):
        rows.setdefault(row_key(run), {})[_part(run)["name"]] = run
    return sorted(rows.values(), key=lambda row: not is_full_cache(next(iter(row.values())).manifest))


def _averages(
    columns: Sequence[Mapping[str, Any]], kind: Literal["means", "macros"]
) -> dict[str, tuple[int, list[str]]]:
    """Averages with the number of members each has when complete, and its columns in this table."""
    names = dict.fromkeys(key for column in columns for key in column[kind])
    members = {key: [column for column in columns if key in column[kind]] for key in names}
    return {key: (max(c[kind][key] for c in found), [c["name"] for c in found]) for key, found in members.items()}


def _dataset(run: Run, metric: str) -> dict[str, Any]:
    return {"score": _score(answered(run), metric), "n": len(answered(run)), **_counts([run])}


def _score(samples: Sequence[AnsweredRecord], metric: str) -> float | None:
    values = [sample["scores"][metric] for sample in samples if metric in sample["scores"]]
    return round(100 * float(np.mean(values)), 2) if values else None


def _mean(scores: Mapping[str, float], names: Sequence[str], of: int) -> dict[str, Any]:
    """The flat mean of a row: over how many datasets, and of how many there should be."""
    found = [scores[key] for key in names if key in scores]
    return {"score": flat_mean(found), "n": len(found), "of": of}


def flat_mean(scores: Sequence[float]) -> float | None:
    """The mean of rounded dataset scores, to two decimals; None of nothing."""
    return round(float(np.mean(scores)), 2) if scores else None


def _macros(columns: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return {key: of for key, (of, _) in _averages(columns, "macros").items()}


def _macro(scores: Mapping[str, float], columns: Sequence[Mapping[str, Any]], macro: str, of: int) -> dict[str, Any]:
    """Means of the categories, and the mean of these.

    How many datasets a category should have is not known. So the average is `complete` if all categories are there
    and the smallest flat mean that holds all of its datasets is complete in this row, too.
    """
    members = [column for column in columns if macro in column["macros"]]
    names: dict[str, list[str]] = {}
    for column in members:
        names.setdefault(column["category"], []).append(column["name"])
    categories = {key: _mean(scores, found, len(found)) for key, found in names.items()}
    present = [[scores[key] for key in found if key in scores] for found in names.values()]
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
    """Scores by length bucket, None for an empty one; {} where the samples carry none."""
    samples = [sample for sample in answered(run) if "bucket" in sample["meta"]]
    if not samples:
        return {}
    return {key: _score([s for s in samples if s["meta"]["bucket"] == key], metric) for key in BUCKETS}


def _counts(runs: Sequence[Run]) -> dict[str, int]:
    # a part of the published samples is marked as incomplete, even where all of that part is done
    published = [max(run.manifest["num_samples"], _part(run).get("samples") or 0) for run in runs]
    return {"oom": count(runs, "oom"), "failed": count(runs, "failed"), "num_samples": sum(published)}


def _amounts(runs: Sequence[Run]) -> dict[str, Any]:
    """Sample counts, and what was kept of the cache: means over all answered samples of the row."""
    samples = [sample for run in runs for sample in answered(run)]
    kept = {
        "kept_tokens": [sample["kept_mean"] for sample in samples],
        "kept_share": [sample["kept_mean"] / sample["span"] for sample in samples],
        "kv_share": [sample["kv_bytes"] / sample["kv_bytes_full"] for sample in samples],
    }
    return {"n": len(samples), **_counts(runs), **{key: float(np.mean(v)) if v else None for key, v in kept.items()}}

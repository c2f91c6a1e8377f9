"""Scores in long form, for a spreadsheet or a data frame: one line per run and score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kvbench.report.runs import Run, answered, count, kept_share, name, score_names, setting, table_mark

Line = dict[str, str | int | float | None]


def score_lines(runs: Sequence[Run], protocol: str) -> list[Line]:
    """Return means in full precision, in [0, 1], None where nothing was answered. `protocol` is the table's mark."""
    return [line for run in runs for line in _lines(run, runs, protocol)]


def _lines(run: Run, runs: Sequence[Run], protocol: str) -> list[Line]:
    shared, place, samples = setting(run.manifest), run.manifest["part"], answered(run)
    label = run.manifest["label"]
    same_column = [other for other in runs if other.manifest["label"]["benchmark"] == label["benchmark"]]
    head: Line = {
        "benchmark": place["suite"] if place else label["benchmark"],
        "model": label["model"],
        "dtype": shared["dtype"],
        "device": shared["device"],
        "protocol": protocol,
        "method": name(run, same_column),
        "budget": label["budget"],
        "dataset": place["name"] if place else None,
        "category": place["category"] if place else None,
    }
    tail: Line = {
        "n": len(samples),
        "oom": count([run], "oom"),
        "failed": count([run], "failed"),
        "num_samples": run.manifest["num_samples"],
        "kept_share": kept_share(run),
        "kv_share": _mean([sample["kv_bytes"] / sample["kv_bytes_full"] for sample in samples]),
        "weights": table_mark(run.manifest["identity"]["model"]),  # tells apart models of one name
    }
    lines = []
    for metric in score_names([run]) or [run.manifest["headline"]]:
        values = [sample["scores"][metric] for sample in samples if metric in sample["scores"]]
        lines.append({**head, "metric": metric, "score": _mean(values), **tail})
    return lines


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None

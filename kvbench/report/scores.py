"""Scores in long form, for a spreadsheet or a data frame: one line per run and score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kvbench.report.runs import Run, answered, count, kept_share, name, score_names, setting


def score_lines(runs: Sequence[Run], protocol: str) -> list[dict[str, Any]]:
    """Means in full precision, in [0, 1], None where nothing was answered. `protocol` is the table's fingerprint."""
    return [line for run in runs for line in _lines(run, runs, protocol)]


def _lines(run: Run, runs: Sequence[Run], protocol: str) -> list[dict[str, Any]]:
    shared, place, samples = setting(run.manifest), run.manifest["part"], answered(run)
    same_column = [other for other in runs if other.manifest["label"]["benchmark"] == shared["benchmark"]]
    head = {
        "benchmark": place["suite"] if place else shared["benchmark"],
        "model": shared["model"][0],
        "dtype": shared["dtype"],
        "device": shared["device"],
        "protocol": protocol,
        "method": name(run, same_column),
        "budget": run.manifest["label"]["budget"],
        "dataset": place["name"] if place else None,
        "category": place["category"] if place else None,
    }
    tail = {
        "n": len(samples),
        "oom": count([run], "oom"),
        "failed": count([run], "failed"),
        "num_samples": run.manifest["num_samples"],
        "kept_share": kept_share(run),
        "kv_share": _mean([sample["kv_bytes"] / sample["kv_bytes_full"] for sample in samples]),
    }
    lines = []
    for metric in score_names([run]) or [run.manifest["headline"]]:
        values = [sample["scores"][metric] for sample in samples if metric in sample["scores"]]
        lines.append({**head, "metric": metric, "score": _mean(values), **tail})
    return lines


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None

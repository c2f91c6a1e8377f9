"""Result tables: one row per method and budget, with the paired difference to the full cache.

Rows share a table only if benchmark, model, dtype, device and protocol are equal; anything else is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from kvbench.report.difference import paired_difference
from kvbench.report.formats import interval, number, percent
from kvbench.report.runs import (
    Run,
    answered,
    check_comparable,
    check_metric,
    count,
    is_full_cache,
    kept_share,
    name,
    order,
    score_names,
)
from kvbench.store import AnsweredRecord

_MIB = 2**20


def table(runs: Sequence[Run], metric: str | None = None) -> list[dict[str, Any]]:
    """Rows as plain numbers, JSON-able, None where nothing was measured; the full cache comes first.

    Means are over the samples that got an answer; `oom` counts the others. `difference` is the mean
    difference in `metric` to the full cache over the samples both answered, with its 95% interval.
    Raises ValueError for runs that cannot be compared and for an unknown metric.
    """
    check_comparable(runs)
    metric = check_metric(runs, metric)
    runs = sorted(runs, key=order)
    names = [metric, *(other for other in score_names(runs) if other != metric)]
    baseline = next((run for run in runs if is_full_cache(run.manifest)), None)
    return [_row(run, names, baseline if baseline is not run else None, name(run, runs)) for run in runs]


def _row(run: Run, names: Sequence[str], baseline: Run | None, method: str) -> dict[str, Any]:
    samples = answered(run)

    def mean(read: Callable[[AnsweredRecord], float | None]) -> float | None:
        values = [value for value in map(read, samples) if value is not None]
        return float(np.mean(values)) if values else None

    def score(which: str) -> float | None:
        return mean(lambda sample: sample["scores"].get(which))

    def timing(which: str) -> float | None:
        return mean(lambda sample: cast(Mapping[str, float | None], sample["timings"]).get(which))

    return {
        "method": method,
        "budget": run.manifest["label"]["budget"],
        "status": run.status.get("status"),
        "n": len(samples),
        "oom": count([run], "oom"),
        "failed": count([run], "failed"),
        "num_samples": run.manifest["num_samples"],
        "scores": {which: score(which) for which in names},
        "difference": paired_difference(run, baseline, names[0]) if baseline and names else None,
        "kept_tokens": mean(lambda sample: sample["kept_mean"]),
        "kept_share": kept_share(run),
        "kv_mib": mean(lambda sample: sample["kv_bytes"] / _MIB),
        "kv_share": mean(lambda sample: sample["kv_bytes"] / sample["kv_bytes_full"]),
        "prefill_s": timing("prefill_s"),
        "compress_s": timing("compress_s"),
        "ttft_s": timing("ttft_s"),
        "tpot_s": timing("tpot_s"),
    }


def cells(row: Mapping[str, Any]) -> dict[str, str]:
    """A row of `table` in words, by column."""
    metric, *others = row["scores"] or ["score"]
    done = row["n"] + row["oom"]
    oom = f" (oom {row['oom']}/{done})" if row["oom"] else ""
    return {
        "method": row["method"],
        "budget": row["budget"],
        metric: number(row["scores"].get(metric), "{:.2f}") + oom,
        "Δ full [95%]": interval(row["difference"]),
        **{name: number(row["scores"][name], "{:.2f}") for name in others},
        "n": f"{done}" if done == row["num_samples"] else f"{done}/{row['num_samples']}",
        "kept/head": number(row["kept_tokens"], "{:.0f}") + percent(row["kept_share"]),
        "KV MiB": number(row["kv_mib"], "{:.2f}") + percent(row["kv_share"]),
        "prefill s": number(row["prefill_s"], "{:.2f}"),
        "compress s": number(row["compress_s"], "{:.3f}"),
        "TTFT s": number(row["ttft_s"], "{:.2f}"),
        "TPOT ms": number(row["tpot_s"] and 1000 * row["tpot_s"], "{:.1f}"),
    }
